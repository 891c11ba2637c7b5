package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"berth"
	"berth/internal/crash"
	"berth/internal/layer"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// An arrival is a layer on its way into the store.
type arrival struct {
	*Store
	d    v1.Descriptor // compressed
	diff v1.Hash       // uncompressed
	tell func(Event)

	dir string // in tmp: blob, and fs and size below layer
}

func (l *arrival) say(status string, current int64) {
	l.tell(Event{Layer: l.d.Digest.Hex[:12], Status: status, Current: current, Total: l.d.Size})
}

// add brings in what the store does not have of the layer. Of two that want
// one layer at once the second waits and finds it.
func (l *arrival) add(ctx context.Context, from source) error {
	unlock, err := l.lock(ctx, l.d.Digest.Hex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	haveBlob, haveLayer := exists(l.blobPath(l.d.Digest)), exists(l.layerPath(l.diff))
	if haveBlob && haveLayer {
		l.say(Exists, l.d.Size)
		return nil
	}
	if haveBlob {
		from = func(context.Context, v1.Descriptor) (io.ReadCloser, error) { return os.Open(l.blobPath(l.d.Digest)) }
	}
	l.say(Fetching, 0)
	if l.dir, err = os.MkdirTemp(l.path("tmp"), "layer-"); err != nil {
		return full(err)
	}
	defer removeAll(l.dir)
	src, err := from(ctx, l.d)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := l.take(ctx, src, !haveBlob, !haveLayer); err != nil {
		return full(err)
	}
	l.say(Complete, l.d.Size)
	return nil
}

// take reads the layer once: it is written, unpacked and verified as it comes.
func (l *arrival) take(ctx context.Context, src io.Reader, keep, unpack bool) error {
	file, err := os.OpenFile(filepath.Join(l.dir, "blob"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	in := &intake{src: src, most: l.d.Size, sum: sha256.New(), progress: func(n int64) { l.say(Downloading, n) }}
	if keep {
		in.file = file
	}
	out := sha256.New()
	stats, err := l.expand(ctx, in, out, unpack)
	// Whatever the archive looked like: if the bytes are not those that were
	// announced, that is why.
	if in.err == nil && ctx.Err() == nil {
		_, _ = io.Copy(io.Discard, in) // a failure is in in.err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if in.err != nil {
		return in.err
	}
	if bad := verify(l.d, in.n, in.sum.Sum(nil)); bad != nil {
		return bad
	}
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(out.Sum(nil)); got != l.diff.Hex {
		return fmt.Errorf("uncompressed, the digest is sha256:%s, it should be %s: %w", got, l.diff, berth.ErrInvalid)
	}
	if err := file.Close(); err != nil {
		return err
	}
	return l.place(stats, keep, unpack)
}

// expand uncompresses and unpacks the layer, and sums up what it is
// uncompressed.
func (l *arrival) expand(ctx context.Context, in io.Reader, sum hash.Hash, unpack bool) (layer.Stats, error) {
	plain, done, err := decompress(in)
	if err != nil {
		return layer.Stats{}, fmt.Errorf("uncompress: %w: %w", err, berth.ErrInvalid)
	}
	defer done()
	tee := io.TeeReader(plain, sum)
	var stats layer.Stats
	if unpack {
		root := filepath.Join(l.dir, "layer", "fs")
		if err := os.MkdirAll(root, 0o755); err != nil {
			return stats, err
		}
		stats, err = layer.Unpack(ctx, root, tee, layer.Options{Form: layer.Overlay})
		if errors.Is(err, berth.ErrUnsupported) {
			// Nothing was read yet. It is held against the rules all the same, and
			// unpacked again by Copy.
			stats, err = layer.Unpack(ctx, root, tee, layer.Options{Form: layer.Onto})
			err = errors.Join(err, os.RemoveAll(root))
		}
		if err != nil {
			return stats, err
		}
	}
	// An archive may be followed by anything; it is part of the digest.
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return stats, fmt.Errorf("uncompress: %w: %w", err, berth.ErrInvalid)
	}
	return stats, nil
}

// place renames what was verified to where it belongs.
func (l *arrival) place(stats layer.Stats, keep, unpack bool) error {
	if unpack {
		dir := filepath.Join(l.dir, "layer")
		if err := os.WriteFile(filepath.Join(dir, "size"), []byte(strconv.FormatInt(stats.Bytes, 10)+"\n"), 0o600); err != nil {
			return err
		}
		crash.Point("image.before-layer")
		// Two layers that were compressed differently may be one.
		if err := os.Rename(dir, l.layerPath(l.diff)); err != nil && !exists(l.layerPath(l.diff)) {
			return err
		}
	}
	crash.Point("image.before-layer-blob")
	if keep {
		return os.Rename(filepath.Join(l.dir, "blob"), l.blobPath(l.d.Digest))
	}
	return nil
}

// An intake reads what comes, no more of it than was announced and one byte,
// sums it up and writes it to a file.
type intake struct {
	src      io.Reader
	n, most  int64
	sum      hash.Hash
	file     io.Writer // nil: not kept
	progress func(int64)
	told     int64
	err      error // of src or file, other than the end
}

func (in *intake) Read(p []byte) (int, error) {
	const step = 512 << 10
	if in.err != nil {
		return 0, in.err
	}
	left := in.most + 1 - in.n
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := in.src.Read(p[:min(int64(len(p)), left)])
	in.n += int64(n)
	in.sum.Write(p[:n])
	if n > 0 && in.file != nil {
		if _, werr := in.file.Write(p[:n]); werr != nil {
			in.err = werr
			return 0, werr
		}
	}
	if in.n-in.told >= step {
		crash.Point("image.reading")
		in.told = in.n
		in.progress(in.n)
	}
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// decompress finds out how a stream is compressed.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	const window = 128 << 20 // as much as zstd itself uncompresses unless it is told
	buf := bufio.NewReaderSize(r, 64<<10)
	magic, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	done = func() {}
	switch layerType(magic) {
	case types.OCILayer:
		plain, err = gzip.NewReader(buf)
	case types.OCILayerZStd:
		var z *zstd.Decoder
		z, err = zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
		if err == nil {
			plain, done = z, z.Close
		}
	default:
		plain, err = buf, nil
	}
	return plain, done, err
}

// layerType tells by its first four bytes how a layer is compressed.
func layerType(magic []byte) types.MediaType {
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return types.OCILayer
	case len(magic) == 4 && (string(magic) == "\x28\xb5\x2f\xfd" || magic[0]&0xf0 == 0x50 && string(magic[1:]) == "\x2a\x4d\x18"):
		return types.OCILayerZStd // the second: a frame to be skipped
	}
	return types.OCIUncompressedLayer
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// removeAll removes a tree, best effort: what is left in tmp is removed later.
func removeAll(dir string) { _ = os.RemoveAll(dir) }
