# config/en_fr_50_50_anchored.py - Table 3, row 11: English and French, 50/50, anchored
dataset = 'en_fr_50_50_anchored'
out_dir = 'out/en_fr_50_50_anchored'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.5, 0.5))]
vocab = 'anchored'
