# config/en_fr_90_10_then_10_90_anchored_3x.py - Table 3, row 20: English and French, 90/10, then 10/90, anchored, 3 times the tokens
dataset = 'en_fr_90_10_then_10_90_anchored_3x'
out_dir = 'out/en_fr_90_10_then_10_90_anchored_3x'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text', 'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
vocab = 'anchored'
max_iters = 3 * 18265
