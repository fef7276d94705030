# config/en_fr_50_50_anchored_3x.py - Table 3, row 19: English and French, 50/50, anchored, 3 times the tokens
dataset = 'en_fr_50_50_anchored_3x'
out_dir = 'out/en_fr_50_50_anchored_3x'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.5, 0.5))]
vocab = 'anchored'
max_iters = 3 * 18265
