# config/en_fr_de_shared.py - three languages, one tokenizer for all, GPT mini; a laptop can run it
# after `python -m extras.eltec deu`, which downloads the German novels
dataset = 'en_fr_de_shared'
out_dir = 'out/en_fr_de_shared'
corpora = {'en': 'corpora/eltec-eng.tar.xz', 'fr': 'corpora/eltec-fra.tar.xz',
           'de': 'corpora/eltec-deu.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr'), ('DE', 'de')]
schedule = [(0.0, (0.8, 0.1, 0.1))]
tokenizer = 'shared'
n_layer = 4
n_embd = 512
n_head = 8
head_dim = 32
batch_size = 32
max_iters = 1000
warmup_iters = 50
