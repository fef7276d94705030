# config/mono_fr_100.py - Table 3, row 4: French alone
dataset = 'mono_fr_100'
out_dir = 'out/mono_fr_100'
corpora = {'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('FR', 'fr')]
schedule = [(0.0, (1.0,))]
