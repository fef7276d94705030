# config/cloned_90_10.py - Table 1, row 5: English and its clone, 90/10
dataset = 'cloned_90_10'
out_dir = 'out/cloned_90_10'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
