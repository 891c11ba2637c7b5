package image

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refused checks that an error is one line and says that it was not right.
func refused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrNotFound) || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%q", err)
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"busybox", "localhost/a:1", "[::1]:5000/a", "a.b:1/c/d@sha256:" + strings.Repeat("a", 64), "A", "a//b", "http://a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parse(s)
		if err != nil {
			refused(t, err)
			return
		}
		for _, form := range []string{r.String(), Short(r.String())} {
			if again, err := parse(form); err != nil || again.String() != r.String() {
				t.Errorf("%q is %q, and that is %q: %v", s, r, again, err)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	digest := "sha256:" + strings.Repeat("a", 64)
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+digest+`","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+digest+`","size":1}]}`), []byte(`{"os":"linux","rootfs":{"diff_ids":["`+digest+`"]}}`))
	f.Add([]byte(`{"manifests":[{"digest":"`+digest+`","platform":{"os":"linux","architecture":"amd64"}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		if d, err := choose(manifest, types.OCIImageIndex, v1.Platform{OS: "linux", Architecture: "amd64"}); err != nil {
			refused(t, err)
		} else if checkDigest(d.Digest) != nil {
			t.Errorf("chose %q", d.Digest)
		}
		m, err := parseManifest(manifest, types.OCIManifestSchema1)
		if err != nil {
			refused(t, err)
			return
		}
		cf, err := parseConfig(config, m)
		if err != nil {
			refused(t, err)
			return
		}
		for i, d := range m.Layers {
			if checkDigest(d.Digest) != nil || checkDigest(cf.RootFS.DiffIDs[i]) != nil || d.Size < 0 {
				t.Errorf("layer %d: %+v, %s", i, d, cf.RootFS.DiffIDs[i])
			}
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`[{"Config":"c","RepoTags":["x"],"Layers":["l"]}]`), []byte(`{"rootfs":{"diff_ids":["sha256:`+strings.Repeat("a", 64)+`"]}}`), []byte("l"))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:`+strings.Repeat("a", 64)+`"}]}`), []byte("{}"), []byte("l"))
	s, err := Open(Options{Dir: filepath.Join(f.TempDir(), "images")}) // one for all: a new one is synced to the disk
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, list, config, layer []byte) {
		for _, name := range []string{"manifest.json ", "index.json "} {
			data := archive(t, name+string(list), "c "+string(config), "l "+string(layer))
			if _, err := s.Load(t.Context(), bytes.NewReader(data), nil); err != nil {
				refused(t, err)
			}
		}
		if _, err := s.List(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func FuzzChange(f *testing.F) {
	for _, s := range []string{`ENV A=1 "B=2 3"`, `CMD ["a"]`, `EXPOSE 80/udp 90-99`, `VOLUME ["/a"]`, `WORKDIR a\`, `LABEL a b`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := change(&v1.Config{}, s); err != nil {
			refused(t, err)
		}
	})
}
