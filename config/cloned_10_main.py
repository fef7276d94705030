# config/cloned_10_main.py - Table 1, row 7: English and nine clones, half of the data English, 1/18 each clone
dataset = 'cloned_10_main'
out_dir = 'out/cloned_10_main'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [(f'EN{i}', 'en') for i in range(1, 11)]
schedule = [(0.0, (0.5,) + (1 / 18,) * 9)]
