// Package container keeps containers: what their users want of them, in the
// store, and what of them is in the kernel. It makes them with an OCI runtime and
// conmon and connects them by functions that it is handed; it has no process that
// stays.
//
// Every verb takes the container's lock, writes the wish, then the intent, and
// then acts. What a verb leaves half done, because it was killed or its container
// has died by other means, the next one finds in the records and takes away
// ([Service.settle]): there is one way down, from whatever was reached.
package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/netns"
	"berth/internal/oci"
	"berth/internal/store"
)

// Networks connects containers. All of it is on the host that the Service is of.
type Networks interface {
	// Make makes a sandbox for a container and returns the path of its
	// namespace.
	Make(ctx context.Context, name, container string) (path string, err error)
	// Remove unpublishes and disconnects a container's sandbox and takes it
	// away. One that is not there, or is not that container's, is no error and
	// stays.
	Remove(ctx context.Context, name, container string) error
	// Connect connects a sandbox to a network. The default one is made at first
	// need.
	Connect(ctx context.Context, sandbox string, a berth.Attachment) (Endpoint, error)
	Disconnect(ctx context.Context, sandbox, network string) error
	// Update changes the limits of an endpoint, the one named dev if it is not "".
	Update(ctx context.Context, sandbox, network, dev string, c berth.RateChange) error
	// Network returns the name of a network; its error matches
	// [berth.ErrNotFound] if there is none.
	Network(ctx context.Context, ref string) (name string, err error)
	Publish(ctx context.Context, sandbox string, specs []berth.PortSpec, o PublishChoice) ([]berth.Port, error)
	Unpublish(ctx context.Context, sandbox string, specs []berth.PortSpec) ([]berth.Port, error)
	// Endpoints returns how a sandbox is connected.
	Endpoints(ctx context.Context, sandbox string) ([]Endpoint, error)
}

// Images are where the files of containers come from that name one.
type Images interface {
	// Lower returns the directories of the layers of the image of an id, the
	// uppermost first.
	Lower(ctx context.Context, id string) ([]string, error)
	// Copy writes its files into an empty directory.
	Copy(ctx context.Context, id, dir string) error
}

// An Endpoint is one with its gateways.
type Endpoint struct {
	berth.Endpoint
	Gateways []string
}

// Options are how a Service is opened.
type Options struct {
	Root, Run string // directories, as the engine's
	Runtime   string // name or path of the OCI runtime; "": the host's
	Networks  Networks
	Images    Images
	// Notice is told what a user should know and is no error.
	Notice func(text string)
	// OnExit is the command that conmon runs when a container has ended; its id
	// is added.
	OnExit []string
}

// A Service keeps the containers of one host.
type Service struct {
	o     Options
	store *store.Store

	once    sync.Once // finds the following, which most commands do without
	mode    cgroup.Mode
	runtime oci.Runtime
	monitor oci.Monitor
	lacks   error // what no container can run without

	forgotten sync.Map // ids whose lock goes when it is given back
}

// Open opens the containers of a host. That there is no runtime or no conmon is
// an error of what needs them, which matches [berth.ErrUnsupported] and names the
// package to install.
func Open(o Options) (*Service, error) {
	s := &Service{o: o}
	host, err := thisHost()
	if err != nil {
		return nil, err
	}
	if s.store, err = store.Open(o.Root, o.Run, host); err != nil {
		return nil, err
	}
	return s, nil
}

// tools looks for what containers run with.
func (s *Service) tools() {
	s.once.Do(func() {
		var err1, err2, err3 error
		s.mode, err1 = cgroup.Detect()
		s.runtime, err2 = oci.FindRuntime(s.o.Runtime, filepath.Join(s.o.Run, "runtime"), s.mode.Version == cgroup.V2)
		s.monitor, err3 = oci.FindMonitor()
		s.lacks = errors.Join(err1, err2, err3)
	})
}

func thisHost() (h store.Host, err error) {
	ns, err := netns.Current()
	if err != nil {
		return h, err
	}
	defer ns.Close()
	boot, err := netns.BootID()
	return store.Host{BootID: boot, Cookie: ns.Cookie()}, err
}

// Close lets go of the store. No container changes.
func (s *Service) Close() { s.store.Close() }

// dir is what is kept of a container until it is removed.
func (s *Service) dir(id string) string { return filepath.Join(s.o.Root, "containers", id) }

// bundle is what is needed of it while it runs.
func (s *Service) bundle(id string) string { return filepath.Join(s.o.Run, "containers", id) }

// exits is where monitors write exit statuses.
func (s *Service) exits() string { return filepath.Join(s.o.Run, "exits") }

// LogPath is the file with what a container has written.
func (s *Service) LogPath(id string) string { return filepath.Join(s.dir(id), "log") }

// Bundle is the directory with a running container's attach socket.
func (s *Service) Bundle(id string) string { return s.bundle(id) }

// lock waits for a container's lock.
func (s *Service) lock(ctx context.Context, id string) (unlock func(), err error) {
	release, err := s.store.Lock(ctx, store.LockContainer, id, true)
	if err != nil {
		return nil, err
	}
	return func() {
		release()
		if _, gone := s.forgotten.LoadAndDelete(id); gone {
			// Best effort: a lock file without its container is only a file.
			_ = s.store.Forget(store.LockContainer, id)
		}
	}, nil
}

// ErrNone is that there is no such container. What matches it matches
// [berth.ErrNotFound] too.
var ErrNone = errors.New("no such container")

// find returns a container by name or id, and its run, if it has one.
func (s *Service) find(ctx context.Context, ref string) (c berth.Container, r *berth.Run, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		if c, err = tx.Container(ref); err != nil {
			if errors.Is(err, berth.ErrNotFound) {
				return fmt.Errorf("%w: %w", ErrNone, err)
			}
			return err
		}
		run, err := tx.Run(c.ID)
		if errors.Is(err, berth.ErrNotFound) {
			return nil
		}
		r = &run
		return err
	})
	return c, r, err
}

// locked finds a container and holds its lock. What has died of it is taken away
// first, so that a run that is returned is alive.
func (s *Service) locked(ctx context.Context, ref string) (c berth.Container, r *berth.Run, unlock func(), err error) {
	s.tools()
	if c, _, err = s.find(ctx, ref); err != nil {
		return c, nil, nil, err
	}
	id := c.ID
	for left := false; ; left = true {
		if unlock, err = s.lock(ctx, id); err != nil {
			return c, nil, nil, err
		}
		c, r, err = s.find(ctx, id)
		if errors.Is(err, berth.ErrNotFound) {
			s.forgotten.Store(id, true) // while we waited; the lock was made anew
		}
		if err == nil && r != nil && s.over(*r) {
			if !left && s.ending(*r) {
				unlock()
				if err := s.leave(ctx, *r); err != nil {
					return c, nil, nil, err
				}
				continue
			}
			if err = s.settle(ctx, &c, r); err == nil {
				c, r, err = s.find(ctx, id)
			}
		}
		if err != nil {
			unlock()
		}
		return c, r, unlock, err
	}
}

// ending reports whether a run has ended and its monitor is about to have it
// taken away.
func (s *Service) ending(r berth.Run) bool { return oci.Alive(r.Monitor) && s.ended(r.Container) }

// leave leaves it to the monitor, without the lock, which that needs.
func (s *Service) leave(ctx context.Context, r berth.Run) error {
	_, err := oci.Await(ctx, r.Monitor, 10*time.Second) // else it hangs, and others must
	return err
}

// dead reports whether a run has ended, though it may not have been taken away.
func (s *Service) dead(r berth.Run) bool { return !oci.Alive(r.Monitor) || s.ended(r.Container) }

// over reports whether a run, of a container that is locked, has to be taken
// away: it is dead, or whoever began to start it is.
func (s *Service) over(r berth.Run) bool { return r.Started.IsZero() || s.dead(r) }

// update changes a container's record.
func (s *Service) update(ctx context.Context, c berth.Container) error {
	return s.store.Update(ctx, func(tx *store.Tx) error { return tx.PutContainer(c) })
}

// newID is 64 random hex digits, of which the first twelve are no number: docker
// takes care of it too, for host names.
func newID() string {
	for {
		var b [32]byte
		rand.Read(b[:]) // never fails (crypto/rand)
		id := hex.EncodeToString(b[:])
		for _, r := range id[:12] {
			if r >= 'a' {
				return id
			}
		}
	}
}

// Create records a container. It has nothing in the kernel yet.
func (s *Service) Create(ctx context.Context, c berth.Container) (berth.Container, error) {
	c.ID, c.Created = newID(), time.Now().UTC()
	if c.Name == "" {
		c.Name = c.ID[:12]
	}
	if err := berth.ValidName("container", c.Name); err != nil {
		return c, err
	}
	if c.Hostname == "" {
		c.Hostname = c.ID[:12]
	}
	if err := s.possible(c); err != nil {
		return c, fmt.Errorf("create container %s: %w", c.Name, err)
	}
	for i, a := range c.Net.Networks {
		// One that is not there yet may be when the container is started.
		c.Net.Networks[i].Network = s.networkName(ctx, a.Network)
	}
	if err := s.update(ctx, c); err != nil {
		return c, fmt.Errorf("create container %s: %w", c.Name, err)
	}
	return c, nil
}

// possible refuses what this host cannot do.
func (s *Service) possible(c berth.Container) error {
	if s.tools(); s.lacks != nil {
		return s.lacks
	}
	if err := cgroup.Check(c.Limits, s.mode); err != nil {
		return err
	}
	if len(c.Net.Ports) > 0 && c.Net.Mode != "" {
		return fmt.Errorf("ports cannot be published with --network %s: %w", c.Net.Mode, berth.ErrInvalid)
	}
	switch {
	case c.ImageID != "":
		return nil
	case c.Rootfs == hostRoot:
		return boxed(c)
	}
	if filepath.Clean(c.Rootfs) == "/" {
		return fmt.Errorf("root file system /: a container cannot have the host's own: --rootfs host shows its programs, copy-on-write: %w", berth.ErrInvalid)
	}
	info, err := os.Stat(c.Rootfs)
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("root file system %s is no directory: %w", c.Rootfs, berth.ErrInvalid)
	}
	return nil
}
