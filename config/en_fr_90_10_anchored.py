# config/en_fr_90_10_anchored.py - Table 3, row 12: English and French, 90/10, anchored
dataset = 'en_fr_90_10_anchored'
out_dir = 'out/en_fr_90_10_anchored'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1))]
vocab = 'anchored'
