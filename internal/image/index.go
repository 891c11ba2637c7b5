package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// Annotations of the descriptors in index.json.
const (
	// noteName is the full name; a descriptor without it has none left. Other
	// tools look for it.
	noteName = "org.opencontainers.image.ref.name"
	// noteID is the digest of the configuration, so that a name is found
	// without reading every manifest.
	noteID = "berth.image.id"
	// noteSource is REPOSITORY@DIGEST as the registry has it; the digest may be
	// of an index of several platforms.
	noteSource = "berth.image.source"
)

// maxDocument is the most bytes of a manifest, an index or a configuration.
const maxDocument = 8 << 20

// index is what index.json holds.
type index []v1.Descriptor

// readIndex returns what there is. It needs no lock: the file is replaced.
func (s *Store) readIndex() (index, error) {
	data, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read images: %s is damaged: %w", s.path("index.json"), err)
	}
	return m.Manifests, nil
}

// updateIndex replaces what there is by what f makes of it.
func (s *Store) updateIndex(ctx context.Context, f func(index) (index, error)) error {
	unlock, err := s.lock(ctx, lockIndex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	was := slices.Clone(x)
	if x, err = f(x); err != nil {
		return err
	}
	if reflect.DeepEqual(x, was) {
		return nil
	}
	data, err := json.MarshalIndent(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: append(index{}, x...)}, "", "\t")
	if err != nil {
		return err
	}
	if err := s.replace("index.json", append(data, '\n')); err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	s.spare(len(data) + 1)
	return nil
}

// with returns the index with an image under a name, which it takes from
// whoever had it. An image that loses its last name stays without one.
func (x index) with(d v1.Descriptor, full, id, source string) index {
	if slices.ContainsFunc(x, func(o v1.Descriptor) bool {
		return o.Digest == d.Digest && nameOf(o) == full && idOf(o) == id && sourceOf(o) == source
	}) {
		return x
	}
	x = x.without(full)
	d.Annotations = map[string]string{noteID: id}
	if source != "" {
		d.Annotations[noteSource] = source
	}
	if full != "" {
		d.Annotations[noteName] = full
	}
	x = slices.DeleteFunc(x, func(o v1.Descriptor) bool {
		return o.Digest == d.Digest && nameOf(o) == "" && (sourceOf(o) == source || sourceOf(o) == "")
	})
	if full == "" && source == "" && slices.ContainsFunc(x, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
		return x
	}
	return append(x, d)
}

// without returns the index without a name.
func (x index) without(full string) index {
	i := slices.IndexFunc(x, func(o v1.Descriptor) bool { return full != "" && nameOf(o) == full })
	if i < 0 {
		return x
	}
	d := x[i]
	x = slices.Delete(x, i, i+1)
	if slices.ContainsFunc(x, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
		return x
	}
	return x.with(d, "", idOf(d), sourceOf(d))
}

func nameOf(d v1.Descriptor) string   { return d.Annotations[noteName] }
func idOf(d v1.Descriptor) string     { return d.Annotations[noteID] }
func sourceOf(d v1.Descriptor) string { return d.Annotations[noteSource] }

// List returns the images, the newest first.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var imgs []Image
	seen := map[string]bool{}
	sizes := map[string]int64{}
	for _, d := range x {
		if seen[idOf(d)] {
			continue
		}
		seen[idOf(d)] = true
		img, err := s.image(x, idOf(d), sizes)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the index was read
		}
		if err != nil {
			return nil, err
		}
		imgs = append(imgs, img)
	}
	slices.SortFunc(imgs, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return imgs, ctx.Err()
}

// Find returns the image of a name, a name with a digest, or an id or the
// beginning of one. A name wins over the beginning of an id.
func (s *Store) Find(ctx context.Context, ref string) (Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return Image{}, err
	}
	id, _, err := x.find(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.image(x, id, map[string]int64{})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("image %s: removed just now: %w", clip(ref), berth.ErrNotFound)
	}
	return img, err
}

// find returns the id of an image, and its full name if ref is one of its
// names with a tag.
func (x index) find(ref string) (id, full string, err error) {
	r, bad := parse(ref)
	if bad == nil {
		for _, d := range x {
			switch {
			case nameOf(d) == r.String() && r.digest == "":
				return idOf(d), nameOf(d), nil
			case r.digest != "" && (sourceOf(d) == r.String() || nameOf(d) != "" && d.Digest.String() == r.digest && strings.HasPrefix(nameOf(d), r.repo()+":")):
				id = idOf(d)
			}
		}
		if id != "" {
			return id, "", nil
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" || len(hex) > 64 {
		if bad != nil {
			return "", "", bad
		}
		return "", "", fmt.Errorf("image %s: %w: %w", Short(r.String()), ErrNone, berth.ErrNotFound)
	}
	for _, d := range x {
		if strings.HasPrefix(idOf(d), "sha256:"+hex) || d.Digest.Hex == hex {
			if id != "" && id != idOf(d) {
				return "", "", fmt.Errorf("image %s: several ids begin so: type more of it: %w", hex, berth.ErrInvalid)
			}
			id = idOf(d)
		}
	}
	if id == "" {
		return "", "", fmt.Errorf("image %s: %w: %w", clip(ref), ErrNone, berth.ErrNotFound)
	}
	return id, "", nil
}

// image reads what the store knows of an image. Sizes remembers those of
// layers.
func (s *Store) image(x index, id string, sizes map[string]int64) (Image, error) {
	img := Image{ID: id}
	var first v1.Descriptor
	for _, d := range x {
		if idOf(d) != id {
			continue
		}
		if img.Digest == "" {
			img.Digest, first = d.Digest.String(), d
		}
		if n := nameOf(d); n != "" && !slices.Contains(img.Names, n) {
			img.Names = append(img.Names, n)
		}
		if n := sourceOf(d); n != "" && !slices.Contains(img.RepoDigests, n) {
			img.RepoDigests = append(img.RepoDigests, n)
		}
	}
	slices.Sort(img.Names)
	slices.Sort(img.RepoDigests)
	m, cf, err := s.documents(first)
	if err != nil {
		return Image{}, fmt.Errorf("read image %.19s: %w", id, err)
	}
	if m.Config.Digest.String() != id {
		return Image{}, fmt.Errorf("read image %.19s: the manifest %s is of another image", id, first.Digest)
	}
	img.Created, img.Config, img.History = cf.Created.Time, cf.Config, cf.History
	img.Platform = platform(cf).String()
	for _, h := range cf.RootFS.DiffIDs {
		img.Layers = append(img.Layers, h.String())
		if _, ok := sizes[h.Hex]; !ok {
			sizes[h.Hex] = s.layerSize(h.Hex)
		}
		img.Size += sizes[h.Hex]
	}
	return img, nil
}

// documents reads an image's manifest and configuration from the store.
func (s *Store) documents(d v1.Descriptor) (*v1.Manifest, *v1.ConfigFile, error) {
	f, err := os.Open(s.blobPath(d.Digest))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	m, err := v1.ParseManifest(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged: %w", f.Name(), err)
	}
	c, err := os.Open(s.blobPath(m.Config.Digest))
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	cf, err := v1.ParseConfigFile(c)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged: %w", c.Name(), err)
	}
	return m, cf, nil
}

// layerSize is the bytes of a layer's files, as was written when it was made.
func (s *Store) layerSize(hex string) int64 {
	data, err := os.ReadFile(s.path("layers", hex, "size"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}
