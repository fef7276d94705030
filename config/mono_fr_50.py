# config/mono_fr_50.py - Table 3, row 5: French alone on half of the tokens
dataset = 'mono_fr_50'
out_dir = 'out/mono_fr_50'
corpora = {'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('FR', 'fr')]
schedule = [(0.0, (1.0,))]
max_iters = 18265 // 2
