"""Is a meta-gradient right? It is held against finite differences and against every engine."""
