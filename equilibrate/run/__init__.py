"""What a run keeps on disk and how it goes on after an interruption."""
