# config/en_fr_90_10.py - Table 3, row 8: English and French, 90/10
dataset = 'en_fr_90_10'
out_dir = 'out/en_fr_90_10'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1))]
