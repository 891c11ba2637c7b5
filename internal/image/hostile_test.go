package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// large is a layer that does not compress: several reads long.
func large(t *testing.T) v1.Layer {
	t.Helper()
	content := make([]byte, 3<<20)
	for i, x := 0, uint32(1); i < len(content); i++ {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		content[i] = byte(x)
	}
	return layerOf(t, archive(t, "big "+string(content)))
}

// An answer is what a registry says instead of what it should.
type answer func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, r *http.Request)

// hostile makes a registry say something else, where the path has part in it,
// the first times that it is asked.
func (s *server) hostile(t *testing.T, part string, times int64, a answer) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	s.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, part) {
			next.ServeHTTP(w, r)
			return
		}
		if n.Add(1) > times {
			next.ServeHTTP(w, r)
			return
		}
		good := httptest.NewRecorder()
		next.ServeHTTP(good, r)
		a(t, good, w, r)
	}
	return &n
}

func (s *server) says(status int, header ...string) answer {
	return func(t *testing.T, _ *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html>\x1b[31m\nline two\n</html>")
	}
}

func write(w http.ResponseWriter, good *httptest.ResponseRecorder, body []byte, size int) {
	for k, v := range good.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(good.Code)
	w.Write(body)
}

func flip(body []byte) []byte {
	body = bytes.Clone(body)
	body[len(body)/2] ^= 1
	return body
}

// A registry that says something wrong, and goes on saying it.
func TestHostileRegistry(t *testing.T) {
	img := imageOf(t, large(t))
	m, _ := img.Manifest()
	blob := "/blobs/" + m.Layers[0].Digest.String()
	config := "/blobs/" + m.Config.Digest.String()
	wrong := func(f func(body []byte) []byte) answer {
		return func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			body := f(good.Body.Bytes())
			write(w, good, body, len(body))
		}
	}
	typed := func(mt string) answer {
		return func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			good.Header().Set("Content-Type", mt)
			write(w, good, good.Body.Bytes(), good.Body.Len())
		}
	}
	s := &server{}
	for _, tt := range []struct {
		name, part string
		a          answer
		is         error
		want       string
	}{
		{"layer with a wrong byte", blob, wrong(flip), berth.ErrInvalid, "it should be " + m.Layers[0].Digest.String()},
		{"layer that is short", blob, wrong(func(b []byte) []byte { return b[:len(b)-9] }), berth.ErrInvalid, "bytes, the manifest says"},
		{"layer that is long", blob, wrong(func(b []byte) []byte { return append(bytes.Clone(b), 0) }), berth.ErrInvalid, "bytes, the manifest says"},
		{"layer that is long and does not say so", blob, func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			w.Write(good.Body.Bytes())
			w.(http.Flusher).Flush()
			w.Write(make([]byte, 1<<20))
		}, berth.ErrInvalid, "more bytes than"},
		{"layer that is cut again and again", blob, func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			write(w, good, good.Body.Bytes()[:good.Body.Len()/2], good.Body.Len())
		}, io.ErrUnexpectedEOF, "broke off after"},
		{"layer that is nowhere", blob, s.says(404), berth.ErrNotFound, "404"},
		{"configuration with a wrong byte", config, wrong(flip), berth.ErrInvalid, "it should be " + m.Config.Digest.String()},
		{"configuration that is another document", config, wrong(func([]byte) []byte { return []byte("{}") }), berth.ErrInvalid, "configuration"},
		{"manifest that is none", "/manifests/", wrong(func([]byte) []byte { return []byte("hello") }), berth.ErrInvalid, "manifest: "},
		{"manifest that calls itself an index", "/manifests/", typed("application/vnd.oci.image.index.v1+json"), berth.ErrInvalid, "it says"},
		{"manifest that is a web page", "/manifests/", typed("text/html"), berth.ErrInvalid, "the registry says that it is text/html"},
		{"manifest of schema 1", "/manifests/", typed("application/vnd.docker.distribution.manifest.v1+prettyjws"), berth.ErrInvalid, "schema 1"},
		{"manifest that is an index too", "/manifests/", wrong(func(b []byte) []byte { return append([]byte(`{"manifests":[],`), b[1:]...) }), berth.ErrInvalid, "an image and an index"},
		{"manifest with a digest that is a path", "/manifests/", wrong(func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(m.Layers[0].Digest.Hex), []byte("../../../../../../../etc/passwd"))
		}), berth.ErrInvalid, "manifest: "},
		{"no such image", "/manifests/", s.says(404), berth.ErrNotFound, "404"},
		{"no credentials", "/manifests/", s.says(401), nil, "docker login"},
		{"credentials that do not do", "/manifests/", s.says(403), nil, "docker login"},
		{"a registry that is out of order", "/manifests/", s.says(500), nil, "500"},
		{"too many requests", "/manifests/", s.says(429), nil, "429"},
		{"too many requests for an hour", blob, s.says(429, "Retry-After", "3600"), nil, "429"},
		{"a redirect without end", blob, func(t *testing.T, _ *httptest.ResponseRecorder, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, nil, "redirects"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg, s := newServer(t), open(t, Options{})
			ref := reg.push(t, "app", img)
			reg.hostile(t, tt.part, 1<<40, tt.a)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if msg := err.Error(); strings.ContainsAny(msg, "\n\x1b") || len(msg) > 600 {
				t.Errorf("not one line for a terminal: %q", msg)
			}
			if _, err := s.Find(t.Context(), ref); !errors.Is(err, berth.ErrNotFound) {
				t.Errorf("something is kept: %v", err)
			}
			for _, f := range files(t, s) {
				if strings.HasPrefix(f, "tmp/") && f != "tmp/" || strings.HasPrefix(f, "layers/") && f != "layers/" || strings.Contains(f, "sha256/") && f != "blobs/sha256/" {
					t.Errorf("%s is left", f)
				}
			}
		})
	}
}

// A registry that gets over it.
func TestRegistryRecovers(t *testing.T) {
	img := imageOf(t, large(t))
	m, _ := img.Manifest()
	blob := "/blobs/" + m.Layers[0].Digest.String()
	half := func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, r *http.Request) {
		write(w, good, good.Body.Bytes()[:good.Body.Len()/2], good.Body.Len())
	}
	s := &server{}
	for _, tt := range []struct {
		name, part string
		times      int64
		a          answer
	}{
		{"busy", "/manifests/", 3, s.says(503)},
		{"busy with a layer", blob, 3, s.says(500)},
		{"asks to wait", blob, 1, s.says(429, "Retry-After", "0")},
		{"asks to wait until", blob, 1, s.says(429, "Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT")},
		{"cuts a layer", blob, 3, half},
		{"cuts before the first byte", blob, 2, func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}},
		{"ends a layer early without a size", blob, 1, func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, _ *http.Request) {
			w.Write(good.Body.Bytes()[:good.Body.Len()/2])
		}},
		{"sends nothing", "/manifests/", 1, func(t *testing.T, _ *httptest.ResponseRecorder, _ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}},
		{"stops in the middle", blob, 1, func(t *testing.T, good *httptest.ResponseRecorder, w http.ResponseWriter, r *http.Request) {
			write(w, good, good.Body.Bytes()[:good.Body.Len()/2], good.Body.Len())
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg, s := newServer(t), open(t, Options{})
			s.wire.stall = 200 * time.Millisecond
			ref := reg.push(t, "app", img)
			asked := reg.hostile(t, tt.part, tt.times, tt.a)
			got := pull(t, s, ref)
			if asked.Load() <= tt.times {
				t.Errorf("asked %d times", asked.Load())
			}
			if len(tree(t, lowerOf(t, s, got)[0])) != 1 {
				t.Error("not the layer")
			}
		})
	}
}

// What was there when a connection broke is not asked for again.
func TestResumes(t *testing.T) {
	l := large(t)
	size, _ := l.Size()
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges=%v", ranges), func(t *testing.T) {
			reg, s := newServer(t), open(t, Options{})
			ref := reg.push(t, "app", imageOf(t, l))
			digest, _ := l.Digest()
			data, _ := l.Compressed()
			body, _ := io.ReadAll(data)
			var asked []string
			reg.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, digest.String()) {
					next.ServeHTTP(w, r)
					return
				}
				asked = append(asked, r.Header.Get("Range"))
				if len(asked) == 1 {
					w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
					w.Write(body[:1000])
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				if !ranges {
					r.Header.Del("Range")
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
			}
			pull(t, s, ref)
			if want := []string{"", fmt.Sprintf("bytes=1000-%d", size-1)}; !slices.Equal(asked, want) {
				t.Errorf("asked for %q, want %q", asked, want)
			}
		})
	}
}

// A pull that was cut off goes on with the layers that it has.
func TestPullGoesOn(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	first, second := layerOf(t, archive(t, "first 1")), layerOf(t, archive(t, "second 2"))
	ref := reg.push(t, "app", imageOf(t, first, second))
	one, _ := first.Digest()
	two, _ := second.Digest()
	var asked atomic.Int64
	reg.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, one.String()) {
			asked.Add(1)
		}
		if strings.HasSuffix(r.URL.Path, two.String()) && asked.Load() < 2 {
			for !exists(s.blobPath(one)) { // the first is in place
				time.Sleep(time.Millisecond)
			}
			asked.Add(10)
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, berth.ErrNotFound) {
		t.Fatal(err)
	}
	asked.Store(5)
	pull(t, s, ref)
	if asked.Load() != 5 {
		t.Error("the first layer was fetched again")
	}
}

// Of two pulls at once each layer is fetched by one.
func TestTwoPulls(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	ref := reg.push(t, "app", imageOf(t, large(t), layerOf(t, archive(t, "small 1"))))
	var blobs atomic.Int64
	reg.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		next.ServeHTTP(w, r)
	}
	const pulls = 6
	done := make(chan error)
	for i := range pulls {
		other, err := Open(Options{Dir: s.dir})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := other.Pull(t.Context(), ref, PullOptions{})
			if err != nil {
				err = fmt.Errorf("pull %d: %w", i, err)
			}
			done <- err
		}()
	}
	for range pulls {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := blobs.Load(); n > 2+pulls { // two layers, and for each its configuration at most
		t.Errorf("%d blobs were fetched", n)
	}
}

// Layers that are compressed in other ways, and diff ids that lie.
func TestLayersOfAllKinds(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	data := archive(t, "a 1")
	plain := static.NewLayer(data, types.OCIUncompressedLayer)
	img := imageOf(t, plain)
	got := pull(t, s, reg.push(t, "plain", img))
	if files := tree(t, lowerOf(t, s, got)[0]); !slices.Equal(files, []string{"a 1"}) {
		t.Errorf("not compressed: %q", files)
	}
	z := layerOf(t, archive(t, "z 2"), tarball.WithCompression("zstd"), tarball.WithMediaType(types.OCILayerZStd))
	got = pull(t, s, reg.push(t, "zstd", imageOf(t, z)))
	if files := tree(t, lowerOf(t, s, got)[0]); !slices.Equal(files, []string{"z 2"}) {
		t.Errorf("zstd: %q", files)
	}
	// The same content compressed otherwise is one layer.
	more := pull(t, s, reg.push(t, "gzip", imageOf(t, layerOf(t, archive(t, "z 2")))))
	if !slices.Equal(more.Layers, got.Layers) {
		t.Errorf("layers %q and %q", got.Layers, more.Layers)
	}

	liar := configured(t, imageOf(t, layerOf(t, archive(t, "b 1"))), func(cf *v1.ConfigFile) {
		cf.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("12", 32)}
	})
	_, err := s.Pull(t.Context(), reg.push(t, "liar", liar), PullOptions{})
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "it should be sha256:1212") {
		t.Errorf("a diff id that is another: %v", err)
	}
	for _, mt := range []types.MediaType{types.DockerForeignLayer, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"} {
		odd, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(data, mt), MediaType: mt})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Pull(t.Context(), reg.push(t, "odd", odd), PullOptions{})
		if !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v", mt, err)
		}
	}
}
