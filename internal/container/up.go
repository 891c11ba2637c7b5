package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/crash"
	"berth/internal/oci"
	"berth/internal/store"
)

// Start starts a container. ready, if not nil, is called when all is prepared
// and before the process begins: whoever attaches then misses nothing. If any
// step fails, nothing of the start stays.
func (s *Service) Start(ctx context.Context, ref string, ready func(bundle string) error) (berth.Container, error) {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return c, err
	}
	defer unlock()
	if r != nil {
		return c, nil // as docker start: it runs, and all is well
	}
	c.RestartCount, c.Delay = 0, 0
	return c, s.start(ctx, &c, ready)
}

// start starts a container that is locked and not in the kernel.
func (s *Service) start(ctx context.Context, c *berth.Container, ready func(bundle string) error) error {
	if ready != nil {
		if err := s.attend(c.ID); err != nil {
			return err
		}
	}
	r := &berth.Run{Container: c.ID}
	err := s.raise(ctx, c, r, ready)
	if err == nil {
		return nil
	}
	err = named(c, err)
	s.Forget(c.ID)
	c.Wanted, c.Again = false, berth.Running{}
	c.Last = berth.Exit{Code: failureCode(err), Error: err.Error(), Finished: time.Now().UTC()}
	// What was asked for may have ended with ctx; what is left must go all the
	// same.
	down := context.WithoutCancel(ctx)
	err = &StartError{Code: c.Last.Code, Err: errors.Join(fmt.Errorf("start container %s: %w", c.Name, err), s.clear(down, c, r))}
	if c.AutoRemove {
		return err
	}
	return errors.Join(err, s.update(down, *c))
}

// named says which command could not be run; crun does not.
func named(c *berth.Container, err error) error {
	command := slices.Concat(c.Process.Entrypoint, c.Process.Command)
	if failureCode(err) == 125 || len(command) == 0 || strings.Contains(err.Error(), command[0]) {
		return err
	}
	return fmt.Errorf("%s: %w", command[0], err)
}

// A StartError is that a container could not be started.
type StartError struct {
	Code int // docker's exit status for it: 125, 126 or 127
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// raise brings a container up, intent before effect.
func (s *Service) raise(ctx context.Context, c *berth.Container, r *berth.Run, ready func(string) error) error {
	if s.lacks != nil {
		return s.lacks
	}
	if c.Net.Mode == "" {
		r.Sandbox = c.Name
	}
	if err := s.putRun(ctx, *r); err != nil {
		return err
	}
	crash.Point("container.intent")
	nsPath, err := s.namespace(ctx, c, r)
	if err != nil {
		return err
	}
	crash.Point("container.namespace")
	pidns := ""
	if kind, arg := mode(c.PidMode); kind == "container" {
		if pidns, err = s.namespaceOf(ctx, arg, "pid"); err != nil {
			return err
		}
	}
	if err := boxedPids(*c, pidns); err != nil {
		return err
	}
	if err := s.prepare(ctx, c, nsPath, pidns); err != nil {
		return err
	}
	crash.Point("container.bundle")
	// The networks are ready while the runtime makes the container.
	type connected struct {
		eps []Endpoint
		err error
	}
	wires := make(chan connected, 1)
	go func() {
		eps, err := s.connect(ctx, c, r)
		wires <- connected{eps, err}
	}()
	pid, monitor, err := s.monitor.Create(ctx, oci.Watch{
		ID: c.ID, Bundle: s.bundle(c.ID), Runtime: s.runtime, Log: s.LogPath(c.ID), LogMaxSize: logMax(*c), ExitDir: s.exits(),
		OnExit: append(append([]string{}, s.o.OnExit...), c.ID), Terminal: c.Process.Terminal, Stdin: c.Process.Stdin,
		KeepStdin: c.Process.Terminal || ready == nil,
		Place:     func(pid int) error { return s.mode.Group(cgroup.MonitorGroup).Add(pid) },
	})
	w := <-wires
	if err = errors.Join(err, w.err); err != nil {
		return err
	}
	crash.Point("container.created")
	r.First, r.Monitor = oci.Identify(pid), oci.Identify(monitor)
	if err := s.putRun(ctx, *r); err != nil {
		return err
	}
	if err := s.writeNames(c, w.eps); err != nil {
		return err
	}
	if ready != nil {
		if err := ready(s.bundle(c.ID)); err != nil {
			return err
		}
	}
	crash.Point("container.ready")
	if err := s.runtime.Begin(ctx, c.ID, r.First); err != nil {
		return err
	}
	crash.Point("container.started")
	r.Started, r.Limits = time.Now().UTC(), c.Limits
	for i, ep := range w.eps {
		c.Net.Networks[i].Had = had(ep)
	}
	c.Wanted, c.Again, c.Last = true, berth.Running{}, berth.Exit{}
	return s.store.Update(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.PutRun(*r), tx.PutContainer(*c))
	})
}

// namespace makes or finds the network namespace. "" is the host's own, and
// "new" one that the runtime makes.
func (s *Service) namespace(ctx context.Context, c *berth.Container, r *berth.Run) (string, error) {
	kind, arg := mode(c.Net.Mode)
	switch kind {
	case "":
		return s.o.Networks.Make(ctx, r.Sandbox, c.ID)
	case "none":
		return newNamespace, nil
	case "host":
		return "", nil
	case "ns":
		return arg, nil
	case "container":
		return s.namespaceOf(ctx, arg, "net")
	}
	return "", fmt.Errorf("network mode %s: %w", c.Net.Mode, berth.ErrInvalid)
}

// newNamespace says that the runtime makes a namespace.
const newNamespace = "new"

// namespaceOf is the path of a namespace of another container.
func (s *Service) namespaceOf(ctx context.Context, ref, which string) (string, error) {
	o, r, err := s.find(ctx, ref)
	if err != nil {
		return "", err
	}
	if r == nil || !oci.Alive(r.First) {
		return "", fmt.Errorf("container %s does not run: %w", o.Name, berth.ErrInvalid)
	}
	return fmt.Sprintf("/proc/%d/ns/%s", r.First.Pid, which), nil
}

// connect connects a container to its networks, and publishes its ports.
func (s *Service) connect(ctx context.Context, c *berth.Container, r *berth.Run) (eps []Endpoint, err error) {
	if r.Sandbox == "" {
		return nil, nil
	}
	for _, a := range c.Net.Networks {
		ep, err := s.o.Networks.Connect(ctx, r.Sandbox, a)
		if err != nil {
			return eps, err
		}
		eps = append(eps, ep)
	}
	crash.Point("container.connected")
	if len(c.Net.Ports) > 0 {
		_, err = s.o.Networks.Publish(ctx, r.Sandbox, c.Net.Ports, PublishChoice{})
	}
	return eps, err
}

// had are an endpoint's addresses as an attachment keeps them.
func had(ep Endpoint) (addrs []netip.Addr) {
	for _, a := range ep.Addrs {
		addrs = append(addrs, a.Addr())
	}
	return addrs
}

// prepare writes the bundle: what the runtime reads, and the files that are laid
// over the container's own.
func (s *Service) prepare(ctx context.Context, c *berth.Container, nsPath, pidns string) error {
	// What an earlier start or end has left; it calls off a restart.
	if err := errors.Join(os.RemoveAll(s.bundle(c.ID)), gone(os.Remove(filepath.Join(s.exits(), c.ID)))); err != nil {
		return err
	}
	for _, d := range []string{s.bundle(c.ID), s.exits(), s.runtime.Root, s.dir(c.ID)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := oci.MakeLog(s.LogPath(c.ID), logMax(*c)); err != nil {
		return err
	}
	if err := s.writeNames(c, nil); err != nil {
		return err
	}
	spec, err := s.spec(ctx, c, nsPath, pidns)
	if err != nil {
		return err
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.bundle(c.ID), "config.json"), b, 0o600)
}

func (s *Service) putRun(ctx context.Context, r berth.Run) error {
	return s.store.Update(ctx, func(tx *store.Tx) error { return tx.PutRun(r) })
}

// logMax is how long a log gets before it begins anew.
func logMax(c berth.Container) int64 {
	if c.LogMaxSize > 0 {
		return c.LogMaxSize
	}
	return 16 << 20
}
