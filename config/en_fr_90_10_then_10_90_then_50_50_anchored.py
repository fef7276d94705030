# config/en_fr_90_10_then_10_90_then_50_50_anchored.py - Table 3, row 15: imbalanced both ways, then balanced
dataset = 'en_fr_90_10_then_10_90_then_50_50_anchored'
out_dir = 'out/en_fr_90_10_then_10_90_then_50_50_anchored'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1)), (0.25, (0.1, 0.9)), (0.5, (0.5, 0.5))]
vocab = 'anchored'
