package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Import makes an image of one layer of an archive of a root directory,
// compressed or not. Name may be "". Changes are instructions of a Dockerfile
// that say how it is run: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL,
// USER, VOLUME, WORKDIR.
func (s *Store) Import(ctx context.Context, r io.Reader, name string, changes []string, message string) (Image, error) {
	if name != "" {
		ref, err := parse(name)
		if err != nil {
			return Image{}, err
		}
		if ref.digest != "" {
			return Image{}, fmt.Errorf("image name %q: a digest is not given, it is: %w", clip(name), berth.ErrInvalid)
		}
		name = ref.String()
	}
	now := v1.Time{Time: time.Now().UTC()}
	cf := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Created: now, RootFS: v1.RootFS{Type: "layers"},
		History: []v1.History{{Created: now, CreatedBy: "berth import", Comment: message}}}
	for _, c := range changes {
		if err := change(&cf.Config, c); err != nil {
			return Image{}, err
		}
	}
	end, err := s.begin(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", full(err))
	}
	img, err := s.importTree(ctx, r, name, &cf)
	end()
	s.tidy(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", full(err))
	}
	return img, nil
}

func (s *Store) importTree(ctx context.Context, r io.Reader, name string, cf *v1.ConfigFile) (Image, error) {
	dir, err := os.MkdirTemp(s.path("tmp"), "import-")
	if err != nil {
		return Image{}, err
	}
	defer removeAll(dir)
	plain, done, err := decompress(reader{ctx, r})
	if err != nil {
		return Image{}, fmt.Errorf("uncompress: %w: %w", err, berth.ErrInvalid)
	}
	defer done()
	// The digest is the layer's name, and is known when it has been read.
	b := &bundle{files: map[string]string{}, digests: map[string]v1.Hash{}, blobs: map[v1.Hash]string{}}
	if err := b.write(ctx, filepath.Join(dir, "layer"), "layer", plain); err != nil {
		return Image{}, err
	}
	l, err := b.descriptor("layer", types.OCIUncompressedLayer)
	if err != nil {
		return Image{}, err
	}
	cf.RootFS.DiffIDs = []v1.Hash{l.Digest}
	config, err := json.Marshal(cf)
	if err != nil {
		return Image{}, err
	}
	if err := b.write(ctx, filepath.Join(dir, "config"), "config", bytes.NewReader(config)); err != nil {
		return Image{}, err
	}
	d := describe(config, types.OCIConfigJSON)
	manifest, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: d, Layers: []v1.Descriptor{l}})
	if err != nil {
		return Image{}, err
	}
	img := incoming{manifest: manifest, d: describe(manifest, types.OCIManifestSchema1), names: []string{name}}
	if err := s.add(ctx, img, b.open, func(Event) {}); err != nil {
		return Image{}, err
	}
	return s.Find(ctx, d.Digest.String())
}

// describe is the descriptor of a document.
func describe(data []byte, t types.MediaType) v1.Descriptor {
	sum := sha256.Sum256(data)
	return v1.Descriptor{MediaType: t, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}
