package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// noteFull is the annotation in which containerd and Docker look for a full
// name.
const noteFull = "io.containerd.image.name"

// saved is an image in the manifest.json of an archive of Docker's.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Save writes an archive of images that Docker, Podman and skopeo read: it is
// Docker's and an OCI layout at once. Names go with it; an image that is asked
// for by its id goes without.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) error {
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	a := &archiver{Store: s, tar: tar.NewWriter(w), done: map[v1.Hash]bool{}, at: map[string]int{}, index: index{}, docker: []saved{}}
	for _, ref := range refs {
		if err := a.image(ctx, x, ref); err != nil {
			return fmt.Errorf("save %s: %w", clip(ref), err)
		}
	}
	for _, f := range []struct {
		name string
		data any
	}{
		{"index.json", v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: a.index}},
		{"manifest.json", a.docker},
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
	} {
		data, err := json.Marshal(f.data)
		if err != nil {
			return err
		}
		if err := a.header(f.name, int64(len(data))); err != nil {
			return err
		}
		if _, err := a.tar.Write(data); err != nil {
			return err
		}
	}
	return a.tar.Close()
}

// An archiver writes an archive of images.
type archiver struct {
	*Store
	tar    *tar.Writer
	done   map[v1.Hash]bool // blobs
	at     map[string]int   // of an image's id in docker
	index  index
	docker []saved
}

func (a *archiver) image(ctx context.Context, x index, ref string) error {
	id, full, err := x.find(ref)
	if err != nil {
		return err
	}
	var d v1.Descriptor
	for _, o := range x {
		if idOf(o) == id && (full == "" || nameOf(o) == full) {
			d = o
			break
		}
	}
	m, _, err := a.documents(d)
	if err != nil {
		return err
	}
	in := saved{Config: "blobs/sha256/" + m.Config.Digest.Hex, Layers: []string{}}
	for _, l := range m.Layers {
		in.Layers = append(in.Layers, "blobs/sha256/"+l.Digest.Hex)
	}
	for _, b := range append([]v1.Descriptor{d, m.Config}, m.Layers...) {
		if err := a.blob(ctx, b); err != nil {
			return err
		}
	}
	i, ok := a.at[id]
	if !ok {
		i = len(a.docker)
		a.at[id], a.docker = i, append(a.docker, in)
	}
	d.Annotations = nil
	if full != "" {
		d.Annotations = map[string]string{noteName: full, noteFull: full}
		a.docker[i].RepoTags = append(a.docker[i].RepoTags, Short(full))
	}
	a.index = append(a.index, d)
	return nil
}

func (a *archiver) blob(ctx context.Context, d v1.Descriptor) error {
	if a.done[d.Digest] {
		return nil
	}
	a.done[d.Digest] = true
	f, err := os.Open(a.blobPath(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.header("blobs/sha256/"+d.Digest.Hex, d.Size); err != nil {
		return err
	}
	if n, err := io.Copy(a.tar, reader{ctx, f}); err != nil {
		return err
	} else if n != d.Size {
		return fmt.Errorf("%s is damaged: %d bytes, there should be %d", f.Name(), n, d.Size)
	}
	return nil
}

// header begins a file. The time is always the same, so that the archive is.
func (a *archiver) header(name string, size int64) error {
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// A reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
