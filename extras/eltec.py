"""
Novels of the European Literary Text Collection, in fifteen languages, as a corpus.

    python -m extras.eltec deu                   # downloads a release -> corpora/eltec-deu.tar.xz
    python -m extras.eltec deu --zip v1.0.0.zip  # from an archive that was downloaded by hand
    python train.py --corpora="{'de': 'corpora/eltec-deu.tar.xz'}" --languages="[('DE', 'de')]"

The releases are pinned, so the same text comes out for everyone: the same bytes, laid out like the
bundled tars. The bundled corpora/eltec-eng.tar.xz and eltec-fra.tar.xz are NOT what this script
makes of eng and fra: they hold a selection of the novels, from commits that are later than the
pinned releases (see corpora/README.md).
"""
import argparse
import hashlib
import io
import lzma
import os
import re
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import config
import data_prep

# language -> release, checksum of its novels: ELTeC 1.1.0 (April 2021), and Italian
ELTEC = {
    'cze': 'v1.0.0 c03fae9e', 'deu': 'v1.0.0 96f9b738', 'eng': 'v1.0.1 72cacd2e',
    'fra': 'v1.0.1 6e6c509b', 'hun': 'v2.0.0 01016c1a', 'ita': 'v0.3.0 0f6fb498',
    'nor': 'v0.5.0 32eb0606', 'pol': 'v1.0.0 ca03d4e4', 'por': 'v2.0.0 07d8f462',
    'rom': 'v0.9.0 31fd03ea', 'slv': 'v2.0.0 7f1dc315', 'spa': 'v0.9.1 c2412d34',
    'srp': 'v0.9.0 c53099cb', 'swe': 'v0.7.1 8f58b31b', 'ukr': 'v0.5.0 620e7dd3'}

URL = 'https://github.com/COST-ELTeC/ELTeC-{}/archive/refs/tags/{}.zip'

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.eltec', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('language', help=', '.join(ELTEC))
    parser.add_argument('--out', help='default: corpora/eltec-LANGUAGE.tar.xz')
    parser.add_argument('--zip', help="GitHub's archive of the release; default: download it")
    args = parser.parse_args(argv)
    args.out = args.out or f'corpora/eltec-{args.language}.tar.xz'
    if args.language not in ELTEC:
        sys.exit(f'language {args.language!r}: ELTeC has {", ".join(ELTEC)}')
    if not args.out.endswith('.tar.xz'):
        sys.exit(f'--out {args.out}: its name must end with .tar.xz')
    if os.path.lexists(args.out):
        sys.exit(f'{args.out} already exists: remove it, or choose another --out')
    return args

def download(language, tag):
    """The archive of a release in data/, downloaded unless that has been done."""
    path = data_prep.DATA / f'ELTeC-{language}-{tag}.zip'
    if not path.exists():
        url = URL.format(language, tag)
        print(f'downloading {url}', flush=True)
        path.parent.mkdir(exist_ok=True)
        with config.reading(url, 'download it by other means, and name the file with --zip'):
            data_prep.atomic_write(path, lambda partial: urllib.request.urlretrieve(url, partial))
    return path

def tei_text(xml, name):
    """A line for every paragraph, heading and verse line of a TEI document's body."""
    tei = '{http://www.tei-c.org/ns/1.0}'
    with config.reading(name, 'it must be a TEI document'):
        body, = ElementTree.fromstring(xml).iter(f'{tei}body')
    lines, inside = [], set()
    for element in body.iter():
        if element.tag in (f'{tei}p', f'{tei}head', f'{tei}l') and element not in inside:
            inside.update(element.iter())  # no verse line in a paragraph twice
            lines.append(' '.join(''.join(element.itertext()).split()))
    return '\n'.join(filter(None, lines))

def novels(path, expected):
    """The novels of a release, {path below level1/: text}, if they are those of the checksum."""
    with config.reading(path, 'download the archive again'), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r'/level1/.*\.xml$', name))
        files = {name.partition('/level1/')[2]: archive.read(name) for name in names}
        # their ids in git, as `git ls-tree -r v1.0.1 level1` of the collection lists them
        ids = [hashlib.sha1(b'blob %d\0' % len(xml) + xml).hexdigest() for xml in files.values()]
        checksum = data_prep.short_hash(ids)
        if not checksum.startswith(expected):
            raise ValueError(f'its novels have checksum {checksum}, not {expected}')
    return {name: tei_text(xml, f'{path}, {name}') for name, xml in files.items()}

def tar_xz(files):
    """The bytes of a .tar.xz of {name: text}: sorted, without times and owners, as
    corpora/README.md describes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w', format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(files.items()):
            content = text.encode()
            member = tarfile.TarInfo(name)  # mode 0644; uid, gid and mtime 0
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME)

def main(args):
    tag, expected = ELTEC[args.language].split()
    path, out = args.zip or download(args.language, tag), Path(args.out)
    texts = novels(path, expected)
    content = tar_xz({f'{args.language}/{name.removesuffix(".xml")}.txt': text
                      for name, text in texts.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    data_prep.atomic_write(out, lambda partial: partial.write_bytes(content))
    n_bytes = sum(len(text.encode()) for text in texts.values())
    print(f'written: {out}, {len(texts)} novels of release {tag}, {n_bytes:,} bytes of text')

if __name__ == '__main__':
    config.run(lambda: main(parse()))
