# config/cloned_50_50_2x.py - Table 1, row 10: English and its clone, 50/50, 2 times the tokens
dataset = 'cloned_50_50_2x'
out_dir = 'out/cloned_50_50_2x'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
max_iters = 2 * 18265
