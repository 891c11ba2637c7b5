package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth"
)

// run runs a program of another project, which the machine must have.
func run(t *testing.T, arg ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), arg[0], arg[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(arg, " "), err, out, errs.String())
	}
	return string(out)
}

// save returns the path of an archive of images.
func save(t *testing.T, s *Store, refs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "images.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Save(t.Context(), f, refs); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, s *Store, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := s.Load(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestSaveAndLoad(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	ref := reg.push(t, "tools/busybox", busybox(t))
	img := pull(t, s, ref)
	if err := s.Tag(t.Context(), ref, "busybox"); err != nil {
		t.Fatal(err)
	}
	path := save(t, s, ref, "busybox")
	other := open(t, Options{})
	if names, want := load(t, other, path), []string{ref, "docker.io/library/busybox:latest"}; !slices.Equal(names, want) {
		t.Errorf("loaded %q, want %q", names, want)
	}
	again, err := other.Find(t.Context(), "busybox")
	if err != nil || again.ID != img.ID || again.Digest != img.Digest || again.Size != img.Size {
		t.Errorf("loaded %+v, saved %+v: %v", again, img, err)
	}
	for i, dir := range lowerOf(t, s, img) {
		if a, b := tree(t, dir), tree(t, lowerOf(t, other, again)[i]); !slices.Equal(a, b) {
			t.Errorf("layer %d: saved %q, loaded %q", i, a, b)
		}
	}
	if a, b := read(t, path), read(t, save(t, other, ref, "busybox")); !bytes.Equal(a, b) {
		t.Error("saved again, the archive is another")
	}

	if names := load(t, open(t, Options{}), save(t, s, img.ID)); !slices.Equal(names, []string{img.ID}) {
		t.Errorf("an image without a name: loaded %q", names)
	}
	if got := load(t, open(t, Options{}), zip(t, path)); len(got) != 2 {
		t.Errorf("compressed: loaded %q", got)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func zip(t *testing.T, path string) string {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(read(t, path))
	w.Close()
	if err := os.WriteFile(path+".gz", buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path + ".gz"
}

// Others read what Save writes, and the store itself.
func TestOthersRead(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	img := pull(t, s, reg.push(t, "tools/busybox", inOCI(t, busybox(t))))
	if err := s.Tag(t.Context(), img.ID, "busybox"); err != nil {
		t.Fatal(err)
	}
	path := save(t, s, "busybox")
	for _, src := range []string{"docker-archive:" + path, "docker-archive:" + path + ":busybox:latest", "oci-archive:" + path, "oci:" + s.dir + ":docker.io/library/busybox:latest"} {
		// The configuration as it is: what is in it has the id as its digest.
		config := run(t, "skopeo", "inspect", "--config", "--raw", src)
		if got := describe([]byte(config), "").Digest.String(); got != img.ID {
			t.Errorf("skopeo reads of %s the image %s, saved was %s", src, got, img.ID)
		}
		out := t.TempDir()
		run(t, "skopeo", "copy", "--quiet", "--insecure-policy", src, "oci:"+out+":x")
		run(t, "umoci", "unpack", "--image", out+":x", filepath.Join(out, "bundle"))
		want := []string{"bin/", "bin/sh #!", "etc/", "etc/motd changed"}
		if got := tree(t, filepath.Join(out, "bundle", "rootfs")); !slices.Equal(got, want) {
			t.Errorf("umoci unpacks of %s %q, want %q", src, got, want)
		}
	}
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("needs podman for its last part: run scripts/setup bench")
	}
	dir := t.TempDir()
	podman := []string{"podman", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs", "--events-backend", "none"}
	run(t, append(podman, "load", "-q", "-i", path)...)
	if got := strings.TrimSpace(run(t, append(podman, "images", "-q", "--no-trunc")...)); got != img.ID {
		t.Errorf("podman load has the image %q, saved was %q", got, img.ID)
	}
}

// What others write is loaded: Docker's archive and OCI's.
func TestLoadOfOthers(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	ref := reg.push(t, "tools/busybox", inOCI(t, busybox(t)))
	img := pull(t, s, ref)
	dir := t.TempDir()
	for name, tt := range map[string]struct{ dest, name string }{
		"docker": {"docker-archive:" + dir + "/docker.tar:example.com/tools/busybox:1", "example.com/tools/busybox:1"},
		"oci":    {"oci-archive:" + dir + "/oci.tar:example.com/tools/busybox:2", "example.com/tools/busybox:2"},
		"bare":   {"oci-archive:" + dir + "/bare.tar", img.ID},
	} {
		run(t, "skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "docker://"+ref, tt.dest)
		other := open(t, Options{})
		if got := load(t, other, filepath.Join(dir, name+".tar")); !slices.Equal(got, []string{tt.name}) {
			t.Errorf("%s: loaded %q, want %q", name, got, tt.name)
		}
		again, err := other.Find(t.Context(), tt.name)
		if err != nil || again.ID != img.ID || again.Size != img.Size {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
		for i, d := range lowerOf(t, s, img) {
			if again.ID != img.ID {
				break
			}
			if a, b := tree(t, d), tree(t, lowerOf(t, other, again)[i]); !slices.Equal(a, b) {
				t.Errorf("%s: layer %d is %q, should be %q", name, i, b, a)
			}
		}
	}
}

// Nothing of a bad archive is kept.
func TestLoadRefuses(t *testing.T) {
	s := open(t, Options{})
	cf := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`
	docker, _ := json.Marshal([]saved{{Config: "c.json", RepoTags: []string{"x"}, Layers: []string{"l/layer.tar"}}})
	blob := describe([]byte(cf), "application/vnd.oci.image.config.v1+json")
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":      {nil, "neither index.json nor manifest.json"},
		"no archive":   {bytes.Repeat([]byte("hello"), 200), "read the archive"},
		"a tree":       {archive(t, "bin/", "bin/sh #!"), "neither index.json nor manifest.json"},
		"cut":          {archive(t, "manifest.json [{}]")[:515], "read the archive: unexpected EOF"},
		"no config":    {archive(t, "manifest.json "+string(docker)), "c.json is not in the archive"},
		"no layer":     {archive(t, "manifest.json "+string(docker), "c.json "+cf), "l/layer.tar is not in the archive"},
		"wrong layer":  {archive(t, "manifest.json "+string(docker), "c.json "+cf, "l/layer.tar "+string(archive(t, "a b"))), "it should be sha256:0000"},
		"names a file": {archive(t, `manifest.json [{"Config":"../../../../etc/passwd"}]`), "etc/passwd is not in the archive"},
		"no blob":      {archive(t, `index.json {"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+blob.Digest.String()+`","size":3}]}`), "is not in the archive"},
		"bad digest":   {archive(t, `index.json {"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../etc/passwd","size":3}]}`), "index.json"},
	} {
		_, err := s.Load(t.Context(), bytes.NewReader(tt.data), nil)
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if got := files(t, s); !slices.Equal(got, slices.DeleteFunc(slices.Clone(bare), func(f string) bool { return strings.HasPrefix(f, "index.json") })) {
		t.Errorf("left: %q", got)
	}
}

func TestImport(t *testing.T) {
	s := open(t, Options{})
	img, err := s.Import(t.Context(), bytes.NewReader(archive(t, "bin/", "bin/sh #!")), "tree:1", []string{
		`CMD ["sh","-c","echo hi"]`, `ENTRYPOINT exec init`, `ENV A=1 B="two words" C=`, `ENV A 3`, `EXPOSE 80 53/udp`,
		`LABEL k=v "a b"=c`, `USER nobody`, `VOLUME ["/data","/log"]`, `VOLUME /tmp`, `WORKDIR /srv`, `WORKDIR www`, `STOPSIGNAL SIGINT`,
	}, "by hand")
	if err != nil {
		t.Fatal(err)
	}
	c := img.Config
	for what, ok := range map[string]bool{
		"names":      slices.Equal(img.Names, []string{"docker.io/library/tree:1"}),
		"cmd":        slices.Equal(c.Cmd, []string{"sh", "-c", "echo hi"}),
		"entrypoint": slices.Equal(c.Entrypoint, []string{"/bin/sh", "-c", "exec init"}),
		"env":        slices.Equal(c.Env, []string{"A=3", "B=two words", "C="}),
		"expose":     slices.Equal(slices.Sorted(maps.Keys(c.ExposedPorts)), []string{"53/udp", "80/tcp"}),
		"label":      maps.Equal(c.Labels, map[string]string{"k": "v", "a b": "c"}),
		"user":       c.User == "nobody",
		"volume":     slices.Equal(slices.Sorted(maps.Keys(c.Volumes)), []string{"/data", "/log", "/tmp"}),
		"workdir":    c.WorkingDir == "/srv/www",
		"stopsignal": c.StopSignal == "SIGINT",
		"history":    len(img.History) == 1 && img.History[0].Comment == "by hand",
		"tree":       slices.Equal(tree(t, lowerOf(t, s, img)[0]), []string{"bin/", "bin/sh #!"}),
		"created":    time.Since(img.Created) < time.Minute,
	} {
		if !ok {
			t.Errorf("%s is wrong: %+v", what, img)
		}
	}
	for _, bad := range []string{"RUN rm -rf /", "CMD", "ENV A", "EXPOSE http", "EXPOSE 70000", `LABEL "a=b`, "ENV =x"} {
		if _, err := s.Import(t.Context(), bytes.NewReader(nil), "", []string{bad}, ""); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := s.Import(t.Context(), strings.NewReader("hello, this is no archive, whatever one does with it"), "", nil, ""); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("no archive: %v", err)
	}
	// The same tree again shares the layer.
	more, err := s.Import(t.Context(), bytes.NewReader(archive(t, "bin/", "bin/sh #!")), "", nil, "")
	if err != nil || len(more.Names) != 0 || !slices.Equal(more.Layers, img.Layers) {
		t.Errorf("again: %+v, %v", more, err)
	}
}

// Save of a store that is read by others does not end in the middle of a file.
func TestSaveOfNothing(t *testing.T) {
	s := open(t, Options{})
	if err := s.Save(t.Context(), io.Discard, []string{"nothing"}); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
	r := tar.NewReader(bytes.NewReader(read(t, save(t, s))))
	for _, want := range []string{"index.json", "manifest.json", "oci-layout"} {
		if h, err := r.Next(); err != nil || h.Name != want {
			t.Errorf("%v, %v; want %s", h, err, want)
		}
	}
}
