# config/en_fr_50_50.py - Table 3, row 7: English and French, 50/50
dataset = 'en_fr_50_50'
out_dir = 'out/en_fr_50_50'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.5, 0.5))]
