package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxFiles is the most files of an archive of images.
const maxFiles = 100_000

// Load brings in the images of an archive of Docker's or of OCI's, compressed
// or not. It returns their full names, and the ids of those without one.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Event)) ([]string, error) {
	end, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("load: %w", full(err))
	}
	names, err := s.load(ctx, r, inTurn(progress))
	end()
	s.tidy(ctx)
	if err != nil {
		return nil, fmt.Errorf("load: %w", full(err))
	}
	return names, nil
}

func (s *Store) load(ctx context.Context, r io.Reader, tell func(Event)) (names []string, err error) {
	dir, err := os.MkdirTemp(s.path("tmp"), "load-")
	if err != nil {
		return nil, err
	}
	defer removeAll(dir)
	b, err := spool(ctx, dir, r)
	if err != nil {
		return nil, err
	}
	imgs, err := b.images()
	if err != nil {
		return nil, err
	}
	for _, img := range imgs {
		if err := s.add(ctx, img, b.open, tell); err != nil {
			return nil, err
		}
		m, err := v1.ParseManifest(bytes.NewReader(img.manifest))
		if err != nil {
			return nil, err
		}
		for _, n := range img.names {
			if n == "" {
				n = m.Config.Digest.String()
			}
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// A bundle is an archive of images, spooled to files: what tells what is in it
// may be at its end.
type bundle struct {
	files   map[string]string  // in the archive → on the disk
	digests map[string]v1.Hash // in the archive → of what is in it
	blobs   map[v1.Hash]string // → in the archive
}

// spool writes the files of an archive into dir, under names of ours.
func spool(ctx context.Context, dir string, r io.Reader) (*bundle, error) {
	plain, done, err := decompress(reader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("uncompress: %w: %w", err, berth.ErrInvalid)
	}
	defer done()
	b := &bundle{files: map[string]string{}, digests: map[string]v1.Hash{}, blobs: map[v1.Hash]string{}}
	links := map[string]string{}
	t := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, notArchive(ctx, err)
		}
		if n == maxFiles {
			return nil, fmt.Errorf("more than %d files in the archive: %w", maxFiles, berth.ErrInvalid)
		}
		name := inside("", h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			if err := b.write(ctx, filepath.Join(dir, strconv.Itoa(n)), name, t); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
			links[name] = inside(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = inside("", h.Linkname)
		}
	}
	// Archives of old Dockers have a layer once and link to it.
	for name, to := range links {
		if file, ok := b.files[to]; ok {
			b.files[name], b.digests[name] = file, b.digests[to]
		}
	}
	return b, nil
}

// inside is the name of a file of an archive, which has no outside.
func inside(dir, name string) string { return strings.TrimPrefix(path.Join("/", dir, name), "/") }

func notArchive(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("read the archive: %w: %w", err, berth.ErrInvalid)
}

func (b *bundle) write(ctx context.Context, file, name string, r io.Reader) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), r); err != nil {
		if _, ok := errors.AsType[*fs.PathError](err); ok { // of f
			return err
		}
		return notArchive(ctx, err)
	}
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	b.files[name], b.digests[name], b.blobs[h] = file, h, name
	return f.Close()
}

// open is the bundle as a source of blobs.
func (b *bundle) open(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	name, ok := b.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s is not in the archive: %w", d.Digest, berth.ErrInvalid)
	}
	return os.Open(b.files[name])
}

// document reads a small file of the archive.
func (b *bundle) document(name string) ([]byte, error) {
	file, ok := b.files[name]
	if !ok {
		return nil, fmt.Errorf("%s is not in the archive: %w", clip(name), berth.ErrInvalid)
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, the most is %d: %w", clip(name), info.Size(), maxDocument, berth.ErrInvalid)
	}
	return os.ReadFile(file)
}

// images lists what is in the archive. The index of an OCI layout wins over
// Docker's manifest.json: with it the digests stay what they were.
func (b *bundle) images() ([]incoming, error) {
	_, oci := b.files["index.json"]
	_, docker := b.files["manifest.json"]
	switch {
	case oci:
		return b.ofLayout()
	case docker:
		return b.ofDocker()
	}
	return nil, fmt.Errorf("not an archive of images: it has neither index.json nor manifest.json; the files of a root directory are taken by import: %w", berth.ErrInvalid)
}

func (b *bundle) ofLayout() (imgs []incoming, err error) {
	data, err := b.document("index.json")
	if err != nil {
		return nil, err
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("index.json: %s: %w", clip(err.Error()), berth.ErrInvalid)
	}
	here, _ := parsePlatform("")
	for _, d := range x.Manifests {
		img := incoming{names: []string{fullName(d.Annotations)}}
		for depth := 0; ; depth++ {
			data, err := b.document(b.blobs[d.Digest])
			if err != nil {
				return nil, fmt.Errorf("%s is not in the archive: %w", d.Digest, berth.ErrInvalid)
			}
			if !d.MediaType.IsIndex() {
				img.manifest, img.d = data, d
				break
			}
			if depth == 3 {
				return nil, fmt.Errorf("an index of an index of an index: %w", berth.ErrInvalid)
			}
			if d, err = choose(data, d.MediaType, here); err != nil {
				return nil, err
			}
		}
		if i := slices.IndexFunc(imgs, func(o incoming) bool { return o.d.Digest == img.d.Digest }); i >= 0 {
			imgs[i].names = append(imgs[i].names, img.names...)
			continue
		}
		imgs = append(imgs, img)
	}
	return imgs, nil
}

// fullName is the name that a layout gives an image, if it is one: some tools
// write the tag alone.
func fullName(notes map[string]string) string {
	for _, key := range []string{noteFull, noteName} {
		n := notes[key]
		if r, err := parse(n); err == nil && r.digest == "" && (key == noteFull || strings.ContainsAny(n, ":/")) {
			return r.String()
		}
	}
	return ""
}

// ofDocker makes manifests for the images of Docker's manifest.json, which has
// none: their layers are kept as they are in the archive.
func (b *bundle) ofDocker() (imgs []incoming, err error) {
	data, err := b.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []saved
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %s: %w", clip(err.Error()), berth.ErrInvalid)
	}
	for _, in := range list {
		m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
		if m.Config, err = b.descriptor(in.Config, types.OCIConfigJSON); err != nil {
			return nil, err
		}
		for _, l := range in.Layers {
			d, err := b.descriptor(l, types.OCIUncompressedLayer)
			if err != nil {
				return nil, err
			}
			m.Layers = append(m.Layers, d)
		}
		img := incoming{}
		if img.manifest, err = json.Marshal(m); err != nil {
			return nil, err
		}
		img.d = describe(img.manifest, m.MediaType)
		for _, t := range in.RepoTags {
			r, err := parse(t)
			if err != nil {
				return nil, err
			}
			img.names = append(img.names, r.String())
		}
		if len(img.names) == 0 {
			img.names = []string{""}
		}
		imgs = append(imgs, img)
	}
	return imgs, nil
}

// descriptor describes a file of the archive as a blob.
func (b *bundle) descriptor(name string, t types.MediaType) (v1.Descriptor, error) {
	name = inside("", name)
	file, ok := b.files[name]
	if !ok {
		return v1.Descriptor{}, fmt.Errorf("%s is not in the archive: %w", clip(name), berth.ErrInvalid)
	}
	f, err := os.Open(file)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return v1.Descriptor{}, err
	}
	var magic [4]byte
	n, _ := io.ReadFull(f, magic[:])
	if t == types.OCIUncompressedLayer {
		t = layerType(magic[:n])
	}
	return v1.Descriptor{MediaType: t, Digest: b.digests[name], Size: info.Size()}, nil
}
