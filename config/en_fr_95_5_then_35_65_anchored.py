# config/en_fr_95_5_then_35_65_anchored.py - Table 3, row 16: English and French, 95/5, then 35/65, anchored
dataset = 'en_fr_95_5_then_35_65_anchored'
out_dir = 'out/en_fr_95_5_then_35_65_anchored'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.95, 0.05)), (0.25, (0.35, 0.65))]
vocab = 'anchored'
