package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
	"berth/internal/oci"
)

// ExecOptions are how one more process is run in a container.
type ExecOptions struct {
	Command    []string
	Env        []string // beside the container's own
	Dir        string   // "": the container's
	User       string   // "": the container's
	Terminal   bool
	Detach     bool
	Privileged bool

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs one more process in a container and returns its exit status: 126 or
// 127 if the runtime could not, and has said why. Errors are of what comes before.
func (s *Service) Exec(ctx context.Context, ref string, o ExecOptions) (int, error) {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return 0, err
	}
	unlock() // it may last
	switch {
	case r == nil || r.Started.IsZero():
		return 0, fmt.Errorf("exec in container %s: it does not run: %w", c.Name, berth.ErrInvalid)
	case r.Paused:
		return 0, fmt.Errorf("exec in container %s: it is paused: %w", c.Name, berth.ErrInvalid)
	}
	spec, err := s.execSpec(&c, o)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.Name, err)
	}
	defer os.Remove(spec)
	code, err := s.runtime.Exec(c.ID, spec, o.Detach, o.Stdin, o.Stdout, o.Stderr)
	if refused := (*oci.Refusal)(nil); errors.As(err, &refused) {
		// As docker's; there is nothing to add to what has been written.
		if code = failureCode(err); code == 125 {
			code = 126
		}
		return code, nil
	}
	return code, err
}

// execSpec writes what the runtime reads of the process.
func (s *Service) execSpec(c *berth.Container, o ExecOptions) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.bundle(c.ID), "config.json"))
	if err != nil {
		return "", err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return "", err
	}
	p := *spec.Process
	p.Args, p.Terminal, p.ConsoleSize = o.Command, o.Terminal, nil
	p.Env = slices.DeleteFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if o.Terminal {
		p.Env = append(p.Env, "TERM=xterm")
	}
	p.Env = append(p.Env, o.Env...)
	if o.Dir != "" {
		p.Cwd = o.Dir
	}
	if o.User != "" {
		u, err := oci.ResolveUser(spec.Root.Path, o.User, nil)
		if err != nil {
			return "", err
		}
		oci.As(&p, u)
	}
	if o.Privileged {
		if c.Rootfs == hostRoot {
			return "", opens("--privileged", wholeRoot)
		}
		given, err := oci.Capabilities()
		if err != nil {
			return "", err
		}
		if err := oci.Privileged(&p, given); err != nil {
			return "", err
		}
	}
	f, err := os.CreateTemp(s.bundle(c.ID), "exec-*.json")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(json.NewEncoder(f).Encode(p), f.Close())
}
