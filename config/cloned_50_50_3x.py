# config/cloned_50_50_3x.py - Table 1, row 12: English and its clone, 50/50, 3 times the tokens
dataset = 'cloned_50_50_3x'
out_dir = 'out/cloned_50_50_3x'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
max_iters = 3 * 18265
