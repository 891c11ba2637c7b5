package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"berth"
	"berth/internal/oci"
)

// Who waits for a container's end has a file beside those of the monitors,
// exits/ID.PID.SINCE: whoever takes the container away writes the exit status
// there, for by then the container itself may be forgotten. The name tells
// whether somebody still waits.

// attend begins to wait for a container's end. It may be called twice.
func (s *Service) attend(id string) error {
	if err := os.MkdirAll(s.exits(), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(s.mailbox(id), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (s *Service) mailbox(id string) string {
	self := oci.Identify(os.Getpid())
	return filepath.Join(s.exits(), fmt.Sprintf("%s.%d.%d", id, self.Pid, self.Since))
}

// attendant is who waits, by the name of a file.
func attendant(file string) (id string, p berth.Running, ok bool) {
	f := strings.Split(file, ".")
	if len(f) != 3 {
		return "", p, false
	}
	pid, err1 := strconv.Atoi(f[1])
	since, err2 := strconv.ParseUint(f[2], 10, 64)
	return f[0], berth.Running{Pid: pid, Since: since}, err1 == nil && err2 == nil
}

// tell tells all who wait how a container has ended.
func (s *Service) tell(id string, code int) error {
	boxes, err := filepath.Glob(filepath.Join(s.exits(), id+".*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, box := range boxes {
		if _, p, ok := attendant(filepath.Base(box)); !ok || !oci.Alive(p) {
			errs = append(errs, gone(os.Remove(box)))
			continue
		}
		// Not made if it is no longer there. The first end is the one that is
		// waited for.
		f, err := os.OpenFile(box, os.O_RDWR, 0)
		if err != nil {
			errs = append(errs, gone(err))
			continue
		}
		if info, err := f.Stat(); err == nil && info.Size() == 0 {
			_, err = fmt.Fprintln(f, code)
			errs = append(errs, err)
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// gone forgives that a file is not there.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// told is what was written for this process.
func (s *Service) told(id string) (code int, ok bool) {
	b, err := os.ReadFile(s.mailbox(id))
	if err != nil || len(b) == 0 {
		return 0, false
	}
	code, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return code, err == nil
}

// Exit waits until a container that runs has ended and is out of the kernel,
// and returns its exit status. Call [Service.Forget] then.
func (s *Service) Exit(ctx context.Context, id string) (int, error) {
	s.tools()
	if err := s.attend(id); err != nil {
		return 0, err
	}
	for {
		c, r, err := s.find(ctx, id)
		if code, ok := s.told(id); ok { // before its run is deleted
			return code, s.prune(ctx)
		}
		if err != nil {
			return 0, err
		}
		if r == nil {
			return c.Last.Code, nil
		}
		if _, err := s.past(ctx, *r, -1); err != nil {
			return 0, err
		}
	}
}

// Forget ends the waiting for a container's end.
func (s *Service) Forget(id string) { os.Remove(s.mailbox(id)) } // [Service.Reconcile] does it otherwise

// Wait waits until a container does not run, and returns its exit status.
func (s *Service) Wait(ctx context.Context, ref string) (int, error) {
	c, r, err := s.find(ctx, ref)
	if err != nil || r == nil {
		return c.Last.Code, err
	}
	defer s.Forget(c.ID)
	return s.Exit(ctx, c.ID)
}
