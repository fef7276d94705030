# config/cloned_90_10_then_10_90.py - Table 1, row 9: English and its clone, 90/10, then 10/90
dataset = 'cloned_90_10_then_10_90'
out_dir = 'out/cloned_90_10_then_10_90'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
