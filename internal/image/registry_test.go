package image

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// No credentials follow a redirect to another host.
func TestRedirect(t *testing.T) {
	reg, s := newServer(t), Options{DockerConfig: t.TempDir()}
	img := imageOf(t, large(t))
	ref := reg.push(t, "app", img)
	var mu sync.Mutex
	var leaked []string
	origin := reg.host
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if a := r.Header.Get("Authorization"); a != "" {
			leaked = append(leaked, a)
		}
		req, _ := http.NewRequestWithContext(r.Context(), r.Method, "http://"+origin+r.URL.Path, nil)
		req.SetBasicAuth("me", "secret")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Length", fmt.Sprint(resp.ContentLength))
		buf := make([]byte, 1<<20)
		for {
			n, err := resp.Body.Read(buf)
			w.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}))
	t.Cleanup(elsewhere.Close)
	asked := 0
	reg.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasPrefix(r.UserAgent(), "Go-http-client") {
			mu.Lock()
			asked++
			mu.Unlock()
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, r)
	}
	// The other server has the same address and another port.
	config := fmt.Sprintf(`{"auths":{"%s":{"username":"me","password":"secret"}}}`, reg.host)
	if err := os.WriteFile(filepath.Join(s.DockerConfig, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, open(t, s), ref)
	if asked != 2 || len(leaked) != 0 {
		t.Errorf("%d redirects, leaked %q", asked, leaked)
	}
}

// A token is asked for with the credentials, of whom the registry says, and
// again when it has run out.
func TestToken(t *testing.T) {
	reg := newServer(t)
	ref := reg.push(t, "tools/app", imageOf(t, large(t), layerOf(t, archive(t, "a 1"))))
	var mu sync.Mutex
	tokens, uses := 0, 0
	var scopes []string
	reg.wrap = func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			if user, _, _ := r.BasicAuth(); user != "me" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			tokens++
			uses = 0
			scopes = r.URL.Query()["scope"]
			fmt.Fprintf(w, `{"token":"t%d"}`, tokens)
			return
		}
		uses++
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", tokens) || uses > 3 {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x",scope="repository:tools/app:pull"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
	o := Options{DockerConfig: t.TempDir()}
	config := fmt.Sprintf(`{"auths":{"%s":{"username":"me","password":"secret"}}}`, reg.host)
	if err := os.WriteFile(filepath.Join(o.DockerConfig, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, open(t, o), ref)
	if tokens < 2 || !slices.Equal(scopes, []string{"repository:tools/app:pull"}) {
		t.Errorf("%d tokens, for %q", tokens, scopes)
	}
}

// index pushes an index of an image for each platform, each with one file that
// says which.
func (s *server) index(t *testing.T, path string, platforms ...string) (ref, digest string) {
	t.Helper()
	var x v1.ImageIndex = empty.Index
	for _, p := range platforms {
		plat, err := v1.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		img := configured(t, imageOf(t, layerOf(t, archive(t, "platform "+p))), func(cf *v1.ConfigFile) {
			cf.OS, cf.Architecture, cf.Variant = plat.OS, plat.Architecture, plat.Variant
		})
		x = mutate.AppendManifests(x, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: plat}})
	}
	r, err := name.ParseReference(s.host + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(r, x); err != nil {
		t.Fatal(err)
	}
	h, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return r.Name(), h.String()
}

func TestPlatforms(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	ref, digest := reg.index(t, "many", "windows/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/amd64", "unknown/unknown", "linux/s390x")
	for platform, want := range map[string]string{
		"": "linux/amd64", "amd64": "linux/amd64", "linux/arm64": "linux/arm64/v8", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "linux/s390x": "linux/s390x",
	} {
		if platform == "" && runtime.GOARCH != "amd64" {
			continue
		}
		img, err := s.Pull(t.Context(), ref, PullOptions{Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		if got := tree(t, lowerOf(t, s, img)[0]); !slices.Equal(got, []string{"platform " + want}) || img.Platform != want {
			t.Errorf("for %q: %q %s", platform, got, img.Platform)
		}
		if want := strings.TrimSuffix(ref, ":latest") + "@" + digest; !slices.Contains(img.RepoDigests, want) {
			t.Errorf("digests %q, want %s", img.RepoDigests, want)
		}
	}
	for platform, is := range map[string]error{"linux/riscv64": berth.ErrNotFound, "linux/": berth.ErrInvalid, "a/b/c/d": berth.ErrInvalid, "windows/amd64": berth.ErrInvalid} {
		if _, err := s.Pull(t.Context(), ref, PullOptions{Platform: platform}); !errors.Is(err, is) {
			t.Errorf("for %s: %v", platform, err)
		}
	}
	// By the digest of the index.
	by := strings.TrimSuffix(ref, ":latest") + "@" + digest
	img := pull(t, s, by)
	if found, err := s.Find(t.Context(), by); err != nil || found.ID != img.ID {
		t.Errorf("by digest: %v", err)
	}
	// An image for one platform is taken for any, unless one is asked for.
	one := reg.push(t, "one", configured(t, busybox(t), func(cf *v1.ConfigFile) { cf.Architecture = "mips" }))
	pull(t, s, one)
	if _, err := s.Pull(t.Context(), one, PullOptions{Platform: "linux/amd64"}); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "linux/mips") {
		t.Errorf("an image for another platform: %v", err)
	}
}

// What is on Docker Hub is asked of its mirrors first.
func TestMirrors(t *testing.T) {
	broken, good := newServer(t), newServer(t)
	img := busybox(t)
	good.push(t, "library/busybox", img)
	good.push(t, "me/tool:1", img)
	s := open(t, Options{Mirrors: []string{"http://" + broken.host, good.host}, DockerConfig: t.TempDir()})
	got := pull(t, s, "busybox")
	if want := []string{"docker.io/library/busybox:latest"}; !slices.Equal(got.Names, want) {
		t.Errorf("names %q, want %q", got.Names, want)
	}
	if found, err := s.Find(t.Context(), "busybox@"+got.Digest); err != nil || found.ID != got.ID {
		t.Errorf("by digest: %v", err)
	}
	pull(t, s, "docker.io/me/tool:1")
	// Nobody has it: the mirrors are named. Docker Hub is not reached.
	elsewhere(s, broken.host)
	s.wire.insecure = append(s.wire.insecure, hub, name.DefaultRegistry)
	_, err := s.Pull(t.Context(), "none", PullOptions{})
	if !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "mirror "+good.host) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"", "ftp://x", "https://x/path"} {
		if _, err := Open(Options{Dir: "/x", Mirrors: []string{bad}}); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("mirror %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "http://x", "a/b", "a b"} {
		if _, err := Open(Options{Dir: "/x", Insecure: []string{bad}}); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("insecure %q: %v", bad, err)
		}
	}
}

func TestNames(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"busybox":                      "docker.io/library/busybox:latest",
		"busybox:1.36":                 "docker.io/library/busybox:1.36",
		"me/tool":                      "docker.io/me/tool:latest",
		"docker.io/busybox":            "docker.io/library/busybox:latest",
		"index.docker.io/a/b:c":        "docker.io/a/b:c",
		"localhost/a":                  "localhost/a:latest",
		"localhost:5000/a/b":           "localhost:5000/a/b:latest",
		"registry.example/a:1":         "registry.example/a:1",
		"[::1]:5000/a":                 "[::1]:5000/a:latest",
		"busybox@" + digest:            "docker.io/library/busybox@" + digest,
		"busybox:1@" + digest:          "docker.io/library/busybox@" + digest,
		"registry.example/a@" + digest: "registry.example/a@" + digest,
		"":                             "", "Busybox": "", "a:": "", "a@sha256:12": "", "a b": "", "a/../b": "", "/a": "", "a\n": "", "http://a/b": "", "a@sha512:" + strings.Repeat("a", 128): "",
	} {
		r, err := parse(in)
		if want == "" {
			if !errors.Is(err, berth.ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v, %v", in, r, err)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("%q: %s, %v; want %s", in, r, err, want)
		}
		if again, err := parse(Short(want)); err != nil || again.String() != want {
			t.Errorf("%q, which is short for %q, is %q: %v", Short(want), want, again, err)
		}
	}
	for full, want := range map[string]string{
		"docker.io/library/busybox:latest": "busybox:latest", "docker.io/me/tool:1": "me/tool:1", "a.example/b:1": "a.example/b:1", "docker.io/library/a/b:1": "library/a/b:1",
	} {
		if got := Short(full); got != want {
			t.Errorf("short for %s is %s, want %s", full, got, want)
		}
	}
}

func TestFind(t *testing.T) {
	x := index{
		{Digest: v1.Hash{Algorithm: "sha256", Hex: "d1"}, Annotations: map[string]string{noteID: "sha256:abc1", noteName: "docker.io/library/one:latest"}},
		{Digest: v1.Hash{Algorithm: "sha256", Hex: "d2"}, Annotations: map[string]string{noteID: "sha256:abc2", noteName: "docker.io/library/abc1:latest"}},
		{Digest: v1.Hash{Algorithm: "sha256", Hex: "d3"}, Annotations: map[string]string{noteID: "sha256:def3"}},
	}
	for ref, want := range map[string]string{
		"one": "sha256:abc1", "one:latest": "sha256:abc1", "docker.io/one": "sha256:abc1",
		"abc1": "sha256:abc2", "sha256:abc1": "sha256:abc1", // a name wins
		"d": "sha256:def3", "sha256:d2": "sha256:abc2",
		"abc": "several", "one:2": "", "fff": "", "sha256:": "", "": "",
	} {
		id, _, err := x.find(ref)
		if id != want && want != "several" && want != "" || (err == nil) != strings.HasPrefix(want, "sha256:") || want == "several" && !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("find %q: %s, %v; want %s", ref, id, err, want)
		}
	}
}
