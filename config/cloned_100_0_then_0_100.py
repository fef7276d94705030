# config/cloned_100_0_then_0_100.py - Table 1, row 8: English in the first half, its clone in the second
dataset = 'cloned_100_0_then_0_100'
out_dir = 'out/cloned_100_0_then_0_100'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (1.0, 0.0)), (0.5, (0.0, 1.0))]
