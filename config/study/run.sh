# One run of the study: trained, or gone on with where it was stopped, and measured where it was not yet.
# All of it, two at a time, a core each; the same line goes on after an interruption:
#   ls config/study/*.py | OMP_NUM_THREADS=1 xargs -P 2 -n 1 sh config/study/run.sh
set -e
run=$(basename "$1" .py)
out=out/study/$run
corpora=../shared/corpora
parallel="--parallel $corpora/multi30k/train.en.gz $corpora/multi30k/train.fr.gz"
measured() { test -e "$out/$1.json"; }

python train.py "$1" $(ls $out/ckpt*.pt > /dev/null 2>&1 && echo --resume)

case $run in
word2vec_*) ;;
cloned_10_*) measured results || python analyze.py ppl $out --stride=64 --languages EN1 EN2 ;;
*) measured results || python analyze.py ppl $out --stride=64 ;;
esac

case $run in  # a look inside: the sweeps over proportions
*_half | *_twice | *_2x64 | *_6x160 | *_then_* | *_shared) ;;
cloned_??_?? | cloned_??_??_seed_? | word2vec_*) measured alignment || python analyze.py alignment $out ;;
en_fr_*) measured alignment || python analyze.py alignment $out $parallel ;;
esac

case $run in
en_fr_50_50_anchored) measured matching || python analyze.py matching $out $parallel --line 9 ;;
cloned_95_05 | cloned_90_10 | cloned_50_50) measured glue || python analyze.py glue $out --data $corpora/glue --tasks sst2 ;;
esac
