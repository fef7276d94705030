# config/cloned_50_50.py - Table 1, row 4: English and its clone, 50/50
dataset = 'cloned_50_50'
out_dir = 'out/cloned_50_50'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
