package image

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth"
	"berth/internal/nettest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// What Copy makes is what an overlay of the layers shows.
func TestCopy(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	for name, tt := range map[string]struct {
		layers [][]byte
		want   []string
	}{
		"whiteout":  {[][]byte{archive(t, "a/", "a/x 1", "a/y 2", "b 3"), archive(t, "a/", "a/.wh.x", "a/z 4", ".wh.b")}, []string{"a/", "a/y 2", "a/z 4"}},
		"opaque":    {[][]byte{archive(t, "a/", "a/x 1", "b 3"), archive(t, "a/", "a/.wh..wh..opq", "a/z 4")}, []string{"a/", "a/z 4", "b 3"}},
		"all of it": {[][]byte{archive(t, "a/", "a/x 1", "b 3"), archive(t, ".wh..wh..opq", "c 5"), archive(t, "d 6")}, []string{"c 5", "d 6"}},
		"twice":     {[][]byte{archive(t, "a/", "a/x 1"), archive(t, ".wh.a", "b 2"), archive(t, "a/", "a/x 1")}, []string{"a/", "a/x 1", "b 2"}},
		"replaced":  {[][]byte{archive(t, "a/", "a/x 1"), archive(t, "a 2")}, []string{"a 2"}},
	} {
		var layers []v1.Layer
		for _, l := range tt.layers {
			layers = append(layers, layerOf(t, l))
		}
		img := pull(t, s, reg.push(t, "app", imageOf(t, layers...)))
		dir := t.TempDir()
		if err := s.Copy(t.Context(), img, dir); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, dir); !slices.Equal(got, tt.want) {
			t.Errorf("%s: a copy is %q, want %q", name, got, tt.want)
		}
		h := nettest.NewHost(t)
		at := t.TempDir()
		lower := lowerOf(t, s, img)
		if len(lower) == 1 { // an overlay has at least two
			lower = append(lower, t.TempDir())
		}
		h.Run(t, "mount", "-t", "overlay", "none", "-o", "lowerdir="+strings.Join(lower, ":"), at)
		if got := tree(t, h.Path(at)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: an overlay shows %q, want %q", name, got, tt.want)
		}
	}
}

// A store on an overlay, where no layer of another can be, keeps images too.
func TestOnOverlay(t *testing.T) {
	h := nettest.NewHost(t)
	at := t.TempDir()
	h.Run(t, "sh", "-c", "mount -t tmpfs none $0 && mkdir $0/lower $0/upper $0/work $0/root && mount -t overlay none -o lowerdir=$0/lower,upperdir=$0/upper,workdir=$0/work $0/root", at)
	reg, s := newServer(t), open(t, Options{Dir: h.Path(filepath.Join(at, "root", "images"))})
	ref := reg.push(t, "app", imageOf(t, layerOf(t, archive(t, "a/", "a/x 1", "a/y 2", "b/", "b/z 3")), layerOf(t, archive(t, "a/", "a/.wh.x", "b/", "b/.wh..wh..opq", "c 4"))))
	img := pull(t, s, ref)
	if img.Size != 4 {
		t.Errorf("its files have %d bytes, they have 4", img.Size)
	}
	if _, err := s.Lower(img); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("layers on an overlay: %v", err)
	}
	dir := filepath.Join(s.dir, "copy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Copy(t.Context(), img, dir); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, dir), []string{"a/", "a/y 2", "b/", "c 4"}; !slices.Equal(got, want) {
		t.Errorf("a copy is %q, want %q", got, want)
	}
	bad := reg.push(t, "bad", imageOf(t, layerOf(t, []byte("no archive, but as long as a block of one is: "+strings.Repeat("x", 1024)))))
	if _, err := s.Pull(t.Context(), bad, PullOptions{}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a layer that cannot be unpacked: %v", err)
	}
}

// The memory of a pull does not grow with the size of a layer.
func TestMemory(t *testing.T) {
	const size, most = 256 << 20, 64 << 20
	dir := t.TempDir()
	d, diff := zeros(t, filepath.Join(dir, "blob"), size)
	config := fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["%s"]}}`, diff)
	c := describe(config, types.OCIConfigJSON)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s","digest":"%s","size":%d},"layers":[{"mediaType":"%s","digest":"%s","size":%d}]}`,
		types.OCIManifestSchema1, c.MediaType, c.Digest, c.Size, types.OCILayer, d.Digest, d.Size)
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			w.Write(manifest)
		case strings.HasSuffix(r.URL.Path, c.Digest.String()):
			w.Write(config)
		case strings.HasSuffix(r.URL.Path, d.Digest.String()):
			http.ServeFile(w, r, filepath.Join(dir, "blob"))
		}
	}))
	defer reg.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "child", "pull", filepath.Join(dir, "images"), strings.TrimPrefix(reg.URL, "http://")+"/app")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if rss := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; rss > most {
		t.Errorf("a layer of %d MiB took %d MiB of memory, the most is %d", size>>20, rss>>20, most>>20)
	}
}

// zeros writes a layer of one file that does not compress well enough to be
// small: runs of zeros between counters.
func zeros(t *testing.T, path string, size int64) (v1.Descriptor, v1.Hash) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	outer, inner := sha256.New(), sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(f, outer), 1<<20)
	z, err := gzip.NewWriterLevel(buf, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := io.MultiWriter(z, inner)
	head := archive(t, "zeros ") // a header and the end; the header says 0 bytes
	h := slices.Clone(head[:512])
	copy(h[124:136], fmt.Sprintf("%011o\x00", size))
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	block := make([]byte, 1<<20)
	w.Write(h)
	for n := int64(0); n < size; n += int64(len(block)) {
		for i := 0; i < len(block); i += 64 {
			copy(block[i:], fmt.Sprint(n+int64(i)))
		}
		w.Write(block)
	}
	w.Write(make([]byte, 1024))
	if err := errors.Join(z.Close(), buf.Flush()); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	of := func(h hash.Hash) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))} }
	return v1.Descriptor{Digest: of(outer), Size: info.Size()}, of(inner)
}
