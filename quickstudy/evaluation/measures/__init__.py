"""What else can be measured beside the score: one file per measure, which also draws it."""
