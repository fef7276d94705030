# The shape of the quickstart: a GPT of 4 x 96 on the built-in text, which 2 CPU cores train in about a minute
corpora = {'en': 'docstrings'}
vocab_size = 1024
block_size = 128
test_frac = 0.01
n_layer = 4
n_embd = 96
n_head = 3
batch_size = 16
max_iters = 900
learning_rate = 2e-3
min_lr = 2e-5
warmup_iters = 20
eval_iters = 10
