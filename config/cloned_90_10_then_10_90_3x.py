# config/cloned_90_10_then_10_90_3x.py - Table 1, row 13: 90/10 in the first half, 10/90 in the second, 3 times the tokens
dataset = 'cloned_90_10_then_10_90_3x'
out_dir = 'out/cloned_90_10_then_10_90_3x'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
max_iters = 3 * 18265
