# config/en_fr_10_90_anchored.py - Table 3, row 13: English and French, 10/90, anchored
dataset = 'en_fr_10_90_anchored'
out_dir = 'out/en_fr_10_90_anchored'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.1, 0.9))]
vocab = 'anchored'
