package image

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// open returns an empty store that gives up soon.
func open(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "images")
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.wire.pause = time.Millisecond
	return s
}

// archive makes a tar archive of files, "name content" each: a name with a
// slash at its end is a directory.
func archive(t *testing.T, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		name, content, _ := strings.Cut(f, " ")
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1e9, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layerOf makes a gzip'ed layer of an archive.
func layerOf(t *testing.T, data []byte, o ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, o...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf makes an image for linux/amd64 of layers.
func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return configured(t, img, func(cf *v1.ConfigFile) { cf.OS, cf.Architecture = "linux", "amd64" })
}

func configured(t *testing.T, img v1.Image, f func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	f(cf)
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// busybox is an image of two layers; the second changes what the first has.
func busybox(t *testing.T) v1.Image {
	t.Helper()
	img := imageOf(t,
		layerOf(t, archive(t, "bin/", "bin/sh #!", "etc/", "etc/old gone soon", "etc/motd hello")),
		layerOf(t, archive(t, "etc/", "etc/.wh.old", "etc/motd changed")))
	return configured(t, img, func(cf *v1.ConfigFile) {
		cf.Config.Cmd, cf.Config.Env = []string{"/bin/sh"}, []string{"PATH=/bin"}
		cf.Created = v1.Time{Time: time.Unix(1e9, 0).UTC()}
	})
}

// inOCI is the image with OCI's media types instead of Docker's: skopeo writes
// and reads no others in a layout.
func inOCI(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: types.OCILayer}); err != nil {
			t.Fatal(err)
		}
	}
	return configured(t, img, func(c *v1.ConfigFile) { *c = *cf })
}

// A server is a registry in this process. What it does can be changed.
type server struct {
	host string
	wrap func(next http.Handler, w http.ResponseWriter, r *http.Request)
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.wrap != nil {
			s.wrap(next, w, r)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

// push puts an image into the registry and returns its name.
func (s *server) push(t *testing.T, path string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func pull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree lists the files of a directory with what is in them.
func tree(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch {
		case e.IsDir():
			files = append(files, rel+"/")
		case e.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files = append(files, rel+" "+string(data))
		default:
			files = append(files, rel+" "+e.Type().String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPull(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	made := busybox(t)
	ref := reg.push(t, "tools/busybox", made)
	var events []Event
	img, err := s.Pull(t.Context(), ref, PullOptions{Progress: func(e Event) { events = append(events, e) }})
	if err != nil {
		t.Fatal(err)
	}
	id, _ := made.ConfigName()
	digest, _ := made.Digest()
	if img.ID != id.String() || img.Digest != digest.String() {
		t.Errorf("pulled %s %s, pushed %s %s", img.ID, img.Digest, id, digest)
	}
	if want := []string{reg.host + "/tools/busybox:latest"}; !slices.Equal(img.Names, want) {
		t.Errorf("names %q, want %q", img.Names, want)
	}
	if want := []string{reg.host + "/tools/busybox@" + digest.String()}; !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %q, want %q", img.RepoDigests, want)
	}
	if !slices.Equal(img.Config.Cmd, []string{"/bin/sh"}) || img.Platform != "linux/amd64" || !img.Created.Equal(time.Unix(1e9, 0)) {
		t.Errorf("configuration %+v, platform %s, created %s", img.Config, img.Platform, img.Created)
	}
	if want := int64(len("#!gone soonhellochanged")); img.Size != want {
		t.Errorf("size %d, want %d", img.Size, want)
	}
	lower := lowerOf(t, s, img)
	if len(lower) != 2 {
		t.Fatalf("lower directories %q", lower)
	}
	if got, want := tree(t, lower[0]), []string{"etc/", "etc/motd changed", "etc/old Dc---------"}; !slices.Equal(got, want) {
		t.Errorf("upper layer %q, want %q", got, want)
	}
	if got, want := tree(t, lower[1]), []string{"bin/", "bin/sh #!", "etc/", "etc/motd hello", "etc/old gone soon"}; !slices.Equal(got, want) {
		t.Errorf("lower layer %q, want %q", got, want)
	}
	done := 0
	for _, e := range events {
		if e.Status == Complete && e.Current == e.Total && len(e.Layer) == 12 {
			done++
		}
	}
	if done != 2 {
		t.Errorf("events %v", events)
	}
	for _, ref := range []string{ref, reg.host + "/tools/busybox", reg.host + "/tools/busybox@" + digest.String(), id.String(), id.Hex, id.Hex[:6], digest.String()} {
		if found, err := s.Find(t.Context(), ref); err != nil || found.ID != img.ID {
			t.Errorf("find %s: %s %v", ref, found.ID, err)
		}
	}
	if imgs, err := s.List(t.Context()); err != nil || len(imgs) != 1 || imgs[0].ID != img.ID {
		t.Errorf("list: %v %v", imgs, err)
	}
}

// lowerOf are the directories of an image's layers.
func lowerOf(t *testing.T, s *Store, img Image) []string {
	t.Helper()
	dirs, err := s.Lower(img)
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}
