package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"berth"
	"berth/internal/crash"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// side is how many layers are fetched and unpacked side by side.
const side = 3

// source is where blobs come from: a registry, or an archive.
type source func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)

// add puts an image into the store, its layers first and its names last. The
// caller is between begin and end.
func (s *Store) add(ctx context.Context, img incoming, from source, tell func(Event)) error {
	m, err := parseManifest(img.manifest, img.d.MediaType)
	if err != nil {
		return err
	}
	config, err := s.document(ctx, m.Config, from)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	cf, err := parseConfig(config, m)
	if err != nil {
		return err
	}
	if img.check != nil {
		if err := img.check(cf); err != nil {
			return err
		}
	}
	if err := s.addLayers(ctx, m, cf, from, tell); err != nil {
		return err
	}
	if err := s.putBlob(m.Config.Digest, config); err != nil {
		return full(err)
	}
	if err := s.putBlob(img.d.Digest, img.manifest); err != nil {
		return full(err)
	}
	// What the index reaches is on the disk.
	if x, err := s.readIndex(); err != nil {
		return err
	} else if !slices.ContainsFunc(x, func(o v1.Descriptor) bool { return o.Digest == img.d.Digest }) {
		crash.Point("image.before-sync")
		if err := s.syncAll(); err != nil {
			return full(err)
		}
	}
	d := v1.Descriptor{MediaType: img.d.MediaType, Size: int64(len(img.manifest)), Digest: img.d.Digest, Platform: cf.Platform()}
	return full(s.updateIndex(ctx, func(x index) (index, error) {
		for _, n := range img.names {
			x = x.with(d, n, m.Config.Digest.String(), img.source)
		}
		return x, nil
	}))
}

// An incoming image is known by its manifest.
type incoming struct {
	manifest []byte
	d        v1.Descriptor // of the manifest
	names    []string      // full; "": it has none
	source   string        // REPOSITORY@DIGEST, or ""
	check    func(*v1.ConfigFile) error
}

func (s *Store) addLayers(ctx context.Context, m *v1.Manifest, cf *v1.ConfigFile, from source, tell func(Event)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(side)
	for _, d := range m.Layers {
		tell(Event{Layer: d.Digest.Hex[:12], Status: Waiting, Total: d.Size})
	}
	var syncing sync.Mutex
	for i, d := range m.Layers {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l := &arrival{Store: s, d: d, diff: cf.RootFS.DiffIDs[i], tell: tell}
			if err := l.add(ctx, from); err != nil {
				return fmt.Errorf("layer %.19s: %w", d.Digest, err)
			}
			// The disk begins while others are still unpacked, and less is left for
			// the sync at the end. What fails here is not told again there.
			if l.dir != "" && syncing.TryLock() {
				defer syncing.Unlock()
				return full(s.syncAll())
			}
			return nil
		})
	}
	return group.Wait()
}

// document returns a small blob: the store's own, or from a source.
func (s *Store) document(ctx context.Context, d v1.Descriptor, from source) ([]byte, error) {
	data, err := os.ReadFile(s.blobPath(d.Digest))
	if err != nil {
		r, err := from(ctx, d)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if data, err = io.ReadAll(io.LimitReader(r, d.Size+1)); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(data)
	return data, verify(d, int64(len(data)), sum[:])
}

// verify holds what came against what was announced.
func verify(d v1.Descriptor, size int64, sum []byte) error {
	if got := hex.EncodeToString(sum); size == d.Size && got != d.Digest.Hex {
		return fmt.Errorf("the digest is sha256:%s, it should be %s: %w", got, d.Digest, berth.ErrInvalid)
	}
	switch {
	case size < d.Size:
		return fmt.Errorf("%d bytes, there should be %d: %w", size, d.Size, berth.ErrInvalid)
	case size > d.Size:
		return fmt.Errorf("more bytes than the %d that there should be: %w", d.Size, berth.ErrInvalid)
	}
	return nil
}

// putBlob writes a small blob that was verified.
func (s *Store) putBlob(h v1.Hash, data []byte) error {
	if _, err := os.Lstat(s.blobPath(h)); err == nil {
		return nil
	}
	f, err := os.CreateTemp(s.path("tmp"), "blob-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	crash.Point("image.before-blob")
	return os.Rename(f.Name(), s.blobPath(h))
}

// full says so when the disk is full.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the disk is full: %w", err)
	}
	return err
}
