package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"berth"
	"berth/internal/container"
	"berth/internal/oci"
)

func (p *program) runCommand() *cobra.Command {
	var f runFlags
	var o runOnlyFlags
	cmd := &cobra.Command{
		Use: "run [flags] IMAGE|--rootfs DIR|--rootfs host [COMMAND…]", Short: "Run a command in a new container",
		Example: "  berth run -d --name web -p 8888:80 nginx\n  berth run --rm -it busybox sh\n  berth run --rm --rootfs host python3 -c 'print(1)'",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.container(args)
			if err != nil {
				return failExec(err)
			}
			keys, err := o.detachKeys()
			if err != nil {
				return failExec(err)
			}
			if err := needTerminal(f.interactive && !o.detach, f.tty); err != nil {
				return err
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				c, err := p.make(cmd.Context(), s, c, &f)
				if err != nil {
					return failExec(err)
				}
				err = p.attend(cmd.Context(), s, c, session{detach: o.detach, stdin: f.interactive, keys: keys, sigProxy: o.sigProxy})
				if err == nil && o.detach {
					p.say(c.ID)
				}
				return err
			})
		},
	}
	f.flags(cmd)
	o.flags(cmd)
	return cmd
}

func (p *program) createCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "create [flags] IMAGE|--rootfs DIR|--rootfs host [COMMAND…]", Short: "Make a container without starting it",
		Example: "  berth create --name web -p 8888:80 --rootfs /srv/web httpd -f",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.container(args)
			if err != nil {
				return failExec(err)
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				c, err := p.make(cmd.Context(), s, c, &f)
				if err == nil {
					p.say(c.ID)
				}
				return failExec(err)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// make records a container and writes its id where it was asked for.
func (p *program) make(ctx context.Context, s *container.Service, c berth.Container, f *runFlags) (berth.Container, error) {
	if c.Process.Terminal {
		for _, f := range []*os.File{os.Stdin, os.Stdout} { // docker asks the second only
			if rows, columns, err := oci.TerminalSize(f); err == nil {
				c.Process.Rows, c.Process.Columns = rows, columns
				break
			}
		}
	}
	create := func() (err error) {
		c, err = s.Create(ctx, c)
		return err
	}
	if c.Image != "" {
		wish := create
		create = func() error { return p.ofImage(ctx, &c, f, wish) }
	}
	if err := create(); err != nil || f.cidFile == "" {
		return c, err
	}
	if err := writeID(f.cidFile, c.ID); err != nil {
		return c, errors.Join(err, s.Remove(ctx, c.ID, false))
	}
	return c, nil
}

func (p *program) startCommand() *cobra.Command {
	var f startFlags
	cmd := &cobra.Command{
		Use: "start CONTAINER…", Short: "Start containers", Args: cobra.MinimumNArgs(1),
		Example: "  berth start web\n  berth start -ai job", ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := f.detachKeys()
			if err != nil {
				return usage(err)
			}
			attached := f.attach || f.interactive
			if attached && len(args) > 1 {
				return usage(errors.New("one container at a time can be attached to"))
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				return each(args, func(ref string) error {
					d, err := s.Inspect(cmd.Context(), ref)
					if err != nil {
						return err
					}
					err = p.attend(cmd.Context(), s, d.Container, session{detach: !attached, stdin: f.interactive, keys: keys, sigProxy: attached})
					if err == nil && !attached {
						p.say(ref)
					}
					return err
				})
			})
		},
	}
	f.flags(cmd)
	return cmd
}

func (p *program) attachCommand() *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Attach to the streams of a container that runs", Args: cobra.ExactArgs(1),
		Example: "  berth attach web", ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := f.detachKeys()
			if err != nil {
				return usage(err)
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				d, err := s.Inspect(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if d.State != container.Running {
					return fmt.Errorf("attach to container %s: it is %s: %w", d.Name, d.State, berth.ErrInvalid)
				}
				stdin := !f.noStdin && d.Process.Stdin
				if err := needTerminal(stdin, d.Process.Terminal); err != nil {
					return err
				}
				conn, err := oci.Connect(s.Bundle(d.ID))
				if err != nil {
					return err
				}
				defer conn.Close()
				return p.follow(context.WithoutCancel(cmd.Context()), s, d.Container, conn, session{stdin: stdin, keys: keys, sigProxy: f.sigProxy})
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// needTerminal refuses an input that is to be a container's terminal and is none, as
// docker does: nothing would tell the container that it has ended.
func needTerminal(stdin, terminal bool) error {
	if stdin && terminal && !oci.IsTerminal(os.Stdin) {
		return errors.New("the input device is not a TTY: leave out -t")
	}
	return nil
}

// A session is how a container that is run or started is attended.
type session struct {
	detach   bool
	stdin    bool // the caller's standard input is the container's
	keys     oci.DetachKeys
	sigProxy bool
}

// attend starts a container and, unless detached, stays with it: its output is
// this program's, and its exit status too.
func (p *program) attend(ctx context.Context, s *container.Service, c berth.Container, o session) error {
	if o.detach {
		_, err := s.Start(ctx, c.ID, nil)
		return startFailed(err)
	}
	var conn *oci.Connection
	_, err := s.Start(ctx, c.ID, func(bundle string) (err error) {
		conn, err = oci.Connect(bundle)
		return err
	})
	if err != nil {
		return startFailed(err)
	}
	defer conn.Close()
	// From here on a signal is the container's, if it is passed on at all.
	ctx = context.WithoutCancel(ctx)
	return p.follow(ctx, s, c, conn, o)
}

// follow copies a container's streams until it has ended.
func (p *program) follow(ctx context.Context, s *container.Service, c berth.Container, conn *oci.Connection, o session) error {
	type exited struct {
		code int
		err  error
	}
	over, ended := make(chan exited, 1), make(chan struct{})
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		code, err := s.Exit(watch, c.ID)
		over <- exited{code, err}
		close(ended)
	}()
	streams := oci.Streams{Stdout: p.out, Stderr: p.err}
	if o.stdin {
		streams.Stdin = os.Stdin
	}
	options := oci.AttachOptions{Terminal: c.Process.Terminal, DetachKeys: o.keys, Ended: ended}
	if o.sigProxy {
		options.Signal = func(sig syscall.Signal) {
			// Best effort: it may have ended just now.
			_ = s.Kill(ctx, c.ID, sig)
		}
	}
	detached, err := conn.Copy(ctx, streams, options)
	if detached || err != nil {
		return err
	}
	end := <-over
	s.Forget(c.ID)
	if end.err != nil {
		return end.err
	}
	return failed(end.code)
}

// startFailed gives the failure to start a container docker's exit status.
func startFailed(err error) error {
	var own *container.StartError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return &exit{own.Code, err}
	}
	return &exit{exitBerth, err}
}

// writeID writes a container's id into a file that must not be there.
func writeID(path, id string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("container id file: %w", err)
	}
	_, err = io.WriteString(f, id)
	return errors.Join(err, f.Close())
}
