"""Faults made on purpose, counted, beside what plain transformers does under the same ones."""
