# The shape of the study: a GPT of 4 x 128 on 3.1M tokens of public-domain novels, six minutes on a CPU core
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz'}
vocab_size = 2048
block_size = 128
test_frac = 0.02
n_layer = 4
n_embd = 128
n_head = 4
batch_size = 8
max_iters = 3000
learning_rate = 4e-3
min_lr = 4e-5
warmup_iters = 50
checkpoint_interval = eval_interval = 500
