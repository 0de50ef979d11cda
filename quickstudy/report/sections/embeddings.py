"""How the learner represents tasks: the figure of their embeddings, and a summary."""

from __future__ import annotations

from quickstudy.base.figures import Picture
from quickstudy.base.words import percent, plural
from quickstudy.evaluation.measures.embeddings import (
    NEIGHBOURS,
    SEEN,
    Fact,
    FromNeighbours,
    TaskEmbeddings,
    figure,
    in_words,
)
from quickstudy.report.sections.section import Section

CLEAR = 0.9  # from this R^2 on a fact can be read off the embedding


def section(embeddings: TaskEmbeddings) -> Section:
    """The section of the page: summary and figure."""
    said, e = conclusion(embeddings), embeddings
    place = "Tasks that lie near each other look alike to the learner. The plane of PCA is that of the largest variance"
    place += f", {percent(e.share)} of it"
    place += "; that of t-SNE keeps neighbours, not distances." if "t-SNE" in e.planes else "."
    what = f"{plural(e.protocol.episodes, 'test task')}, one point each. {place}"
    heading = f"Embeddings of {plural(e.protocol.episodes, 'test task')}"
    return Section(said, Picture(heading, lambda c: figure(e, c), f"Scatter plot. {said}", [], what))


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(e: TaskEmbeddings) -> str:
    """What the embedding reveals about the tasks, in a few sentences."""
    plane = f"Two directions of its {e.length} hold {percent(e.share)} of the variance."
    if not e.facts:
        return f"Nothing else is known of these tasks. {plane}"
    return " ".join([*(_of_fact(name, e.facts[name], fit) for name, fit in e.from_neighbours.items()), plane])


def _of_fact(name: str, fact: Fact, fit: FromNeighbours) -> str:
    known, by_words = in_words(fact, fit), isinstance(fact[0], str)
    if by_words and fit.value > max(2 * fit.chance, fit.chance + 0.1):
        return f"Tasks of one {name} lie together: {known}."
    if not by_words and fit.value >= CLEAR:
        return f"The {name} of a task can be read off its {NEIGHBOURS} neighbours: {known}."
    if not by_words and fit.value >= SEEN:
        return f"The embedding tells the {name} in part: {known}."
    return f"The embedding hardly tells the {name}: {known}."
