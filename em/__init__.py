"""What is done to one model: data, fine-tune, generate, judge, score; and the statistics of scores.

Knows nothing of Ray, of a grid, or of where its functions run.
"""
