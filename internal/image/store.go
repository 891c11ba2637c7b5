package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth"
	"berth/internal/crash"
	"berth/internal/layer"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Options say where a store is and how registries are spoken to.
type Options struct {
	// Dir is the directory of the store. It is made by the first that writes.
	Dir string
	// Mirrors are registries (a host, with or without a port and https:// or
	// http:// before it) that are asked for what is on Docker Hub before it is.
	Mirrors []string
	// Insecure are registries, HOST, HOST:PORT or a prefix of addresses, that
	// may speak plain http or have a certificate that nobody vouches for.
	// Those of the loopback interface always may.
	Insecure []string
	// DockerConfig is the directory of the docker configuration that has
	// credentials and helpers. "": as Docker finds it ($DOCKER_CONFIG,
	// ~/.docker), or else where Podman keeps them.
	DockerConfig string
}

// A Store is a directory of images. Any number of processes and goroutines may
// use it at once.
type Store struct {
	dir  string
	wire *wire
	keys keys
	// mirrors of Docker Hub, in the order in which they are asked.
	mirrors []string
}

// Open returns the store of a directory. Nothing is read or made yet.
func Open(o Options) (*Store, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("open image store %q: not an absolute path: %w", o.Dir, berth.ErrInvalid)
	}
	w, err := newWire(o.Insecure)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: filepath.Clean(o.Dir), wire: w, keys: keys{o.DockerConfig}}
	for _, m := range o.Mirrors {
		host, err := w.mirror(m)
		if err != nil {
			return nil, err
		}
		s.mirrors = append(s.mirrors, host)
	}
	return s, nil
}

// An Image is what the store knows of one.
type Image struct {
	// ID is Docker's: sha256:HEX of the configuration.
	ID string
	// Digest is sha256:HEX of the manifest.
	Digest string
	// RepoDigests are the names with digests under which registries have it.
	RepoDigests []string
	// Names are its full names with tags; none if others have taken them.
	Names    []string
	Created  time.Time
	Size     int64  // bytes of the files of its layers
	Platform string // linux/amd64
	Config   v1.Config
	History  []v1.History
	// Layers are the diff ids of its layers, lowest first.
	Layers []string
}

// Lower returns the directories of the image's layers, the uppermost first, as
// lowerdir of an overlay wants them. Layers below one that hides all of them
// are not among them. An error matches [berth.ErrUnsupported] where the file
// system of the store cannot hold such directories; Copy works there.
func (s *Store) Lower(img Image) ([]string, error) {
	dirs := make([]string, 0, len(img.Layers))
	for i, l := range slices.Backward(img.Layers) {
		// The kernel refuses one directory twice. What the lower one of two
		// equal layers has or hides, the upper one has or hides too.
		if slices.Contains(img.Layers[i+1:], l) {
			continue
		}
		h, err := v1.NewHash(l)
		if err != nil {
			return nil, fmt.Errorf("image %.19s: %w", img.ID, err)
		}
		dir := filepath.Join(s.layerPath(h), "fs")
		dirs = append(dirs, dir)
		// The kernel does not look for the mark at the root of a layer.
		hides, err := layer.Opaque(dir)
		if errors.Is(err, fs.ErrNotExist) && exists(s.layerPath(h)) {
			return nil, fmt.Errorf("image %.19s: the file system of %s holds no layers of overlays: %w", img.ID, s.dir, berth.ErrUnsupported)
		} else if err != nil {
			return nil, fmt.Errorf("image %.19s: %w", img.ID, err)
		} else if hides {
			break
		}
	}
	return dirs, nil
}

// Copy unpacks the image's layers into an empty directory, one over the other:
// for where overlays cannot be used.
func (s *Store) Copy(ctx context.Context, img Image, dir string) error {
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	h, err := v1.NewHash(img.Digest)
	if err != nil {
		return fmt.Errorf("copy image %.19s: %w", img.ID, err)
	}
	m, _, err := s.documents(v1.Descriptor{Digest: h})
	if err != nil {
		return fmt.Errorf("copy image %.19s: %w", img.ID, err)
	}
	for _, l := range m.Layers {
		if err := s.copyLayer(ctx, l.Digest, dir); err != nil {
			return fmt.Errorf("copy image %.19s: layer %.19s: %w", img.ID, l.Digest, full(err))
		}
	}
	return nil
}

func (s *Store) copyLayer(ctx context.Context, h v1.Hash, dir string) error {
	f, err := os.Open(s.blobPath(h))
	if err != nil {
		return err
	}
	defer f.Close()
	plain, done, err := decompress(f)
	if err != nil {
		return err
	}
	defer done()
	_, err = layer.Unpack(ctx, dir, plain, layer.Options{Form: layer.Onto})
	return err
}

// Hold keeps every image that is there until release is called: a container
// is recorded between a Find and that.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	return s.lock(ctx, lockHold, unix.LOCK_SH)
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}
func (s *Store) blobPath(h v1.Hash) string  { return s.path("blobs", h.Algorithm, h.Hex) }
func (s *Store) layerPath(h v1.Hash) string { return s.path("layers", h.Hex) }

// prepare makes the directories of a store.
func (s *Store) prepare() error {
	for _, dir := range []string{"blobs/sha256", "layers", "tmp", "locks"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return fmt.Errorf("make image store: %w", err)
		}
	}
	if _, err := os.Lstat(s.path("oci-layout")); err == nil {
		return nil
	}
	unlock, err := s.lock(context.Background(), lockIndex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	return s.replace("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// begin is called by whoever makes or reads blobs and layers; they stay until
// end is called.
func (s *Store) begin(ctx context.Context) (end func(), err error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	for {
		end, err = s.lock(ctx, lockStore, unix.LOCK_SH)
		if err != nil {
			return nil, err
		}
		fresh, err := s.freshBoot()
		if err == nil && !fresh {
			return end, nil
		}
		end()
		if err != nil {
			return nil, err
		}
		if err := s.firstOfBoot(ctx); err != nil {
			return nil, err
		}
	}
}

// freshBoot reports whether the store was last written to before this boot.
func (s *Store) freshBoot() (bool, error) {
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return false, err
	}
	then, err := os.ReadFile(s.path("boot"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return !bytes.Equal(now, then), nil
}

// firstOfBoot removes what a power cut may have hollowed: what a pull that did
// not end had renamed into place was perhaps never written to the disk.
func (s *Store) firstOfBoot(ctx context.Context) error {
	unlock, err := s.lock(ctx, lockStore, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if fresh, err := s.freshBoot(); err != nil || !fresh {
		return err
	}
	if _, err := s.sweep(ctx); err != nil {
		return err
	}
	unlockIndex, err := s.lock(ctx, lockIndex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlockIndex()
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	return s.replace("boot", now)
}

// replace writes a file of the store: who reads it sees the old one or the new
// one, after a power cut too. The caller has lockIndex.
func (s *Store) replace(name string, data []byte) error {
	f, err := os.OpenFile(s.path(name+".new"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	crash.Point("image.before-replace:" + name)
	if err := os.Rename(f.Name(), s.path(name)); err != nil {
		return err
	}
	crash.Point("image.after-replace:" + name)
	return syncDir(s.dir)
}

// spare keeps room for the next index.json, which is a shorter one if an image
// is removed: that works on a full disk too. Best effort: there may be no room.
func (s *Store) spare(size int) {
	f, err := os.OpenFile(s.path("index.json.new"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// syncAll puts all that was written to the store's file system on the disk.
func (s *Store) syncAll() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	return nil
}
