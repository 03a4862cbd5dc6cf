"""What people bring: tables of prompts and answers, checked row by row."""
