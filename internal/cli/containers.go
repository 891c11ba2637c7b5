package cli

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"berth/engine"
	"berth/internal/container"
	"berth/internal/oci"
)

// containers opens the containers of the host for the length of fn.
func (p *program) containers(ctx context.Context, fn func(*container.Service) error) error {
	return p.wired(ctx, func(_ *engine.Engine, s *container.Service) error { return fn(s) })
}

// wired opens the engine and the containers for the length of fn.
func (p *program) wired(ctx context.Context, fn func(*engine.Engine, *container.Service) error) error {
	return p.with(ctx, func(e *engine.Engine) error {
		s, err := p.service(wires{e})
		if err != nil {
			return err
		}
		defer s.Close()
		return fn(e, s)
	})
}

// service opens the containers as the flags say.
func (p *program) service(w wires) (*container.Service, error) {
	root := cmp.Or(p.root, os.Getenv("BERTH_ROOT"), "/var/lib/berth")
	run := cmp.Or(p.run, os.Getenv("BERTH_RUN"), "/run/berth")
	root, err1 := filepath.Abs(root)
	run, err2 := filepath.Abs(run)
	self, err3 := os.Executable()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	return container.Open(container.Options{
		Root: root, Run: run, Runtime: os.Getenv("BERTH_RUNTIME"), Networks: w, Images: layers{p}, Notice: p.note,
		OnExit: []string{self, "--root", root, "--run", run, endedCommand},
	})
}

// endedCommand is what conmon runs when a container has ended.
const endedCommand = "container-ended"

func (p *program) ended() *cobra.Command {
	return &cobra.Command{
		Use: endedCommand + " ID", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Unlike other commands it has something to do while the kernel
			// deletes a link.
			runtime.GOMAXPROCS(2)
			return p.containers(cmd.Context(), func(s *container.Service) error { return s.Ended(cmd.Context(), args[0]) })
		},
	}
}

// containerCommands are the commands that docker has at its root.
func (p *program) containerCommands() []*cobra.Command {
	return []*cobra.Command{
		p.runCommand(), p.createCommand(), p.startCommand(), p.stop(), p.kill(), p.restart(), p.pause(), p.unpause(), p.rm(), p.wait(),
		p.ps(), p.inspectContainers(), p.logs(), p.execContainer(), p.attachCommand(), p.ended(),
		p.update(), p.stats(), p.prune(), p.diff(), p.system(),
	}
}

// verb makes a command that does something to each container it names, and
// prints the names as they were given.
func (p *program) verb(name, short, example string, do func(context.Context, *container.Service, string) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " CONTAINER…", Short: short, Args: cobra.MinimumNArgs(1), Example: "  " + example, ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.containers(cmd.Context(), func(s *container.Service) error {
				return each(args, func(ref string) error {
					if err := do(cmd.Context(), s, ref); err != nil {
						return err
					}
					p.say(ref)
					return nil
				})
			})
		},
	}
}

func (p *program) stop() *cobra.Command {
	var f stopFlags
	cmd := p.verb("stop", "Stop containers", "berth stop -t 1 web", func(ctx context.Context, s *container.Service, ref string) error {
		return stopOne(ctx, s.Stop, ref, &f)
	})
	cmd.Long = "Stop containers: by their own signal, and after a while by SIGKILL."
	f.flags(cmd)
	return cmd
}

// stopOne stops a container, or restarts it, as the flags say.
func stopOne(ctx context.Context, stop func(context.Context, string, syscall.Signal, *int) error, ref string, f *stopFlags) error {
	seconds, err := f.seconds()
	if err != nil {
		return usage(err)
	}
	signal, err := f.signal()
	if err != nil {
		return usage(err)
	}
	return stop(ctx, ref, signal, seconds)
}

func (p *program) kill() *cobra.Command {
	var f killFlags
	cmd := p.verb("kill", "Send containers a signal", "berth kill -s HUP web", func(ctx context.Context, s *container.Service, ref string) error {
		signal, err := f.signal()
		if err != nil {
			return usage(err)
		}
		return s.Kill(ctx, ref, signal)
	})
	f.flags(cmd)
	return cmd
}

func (p *program) restart() *cobra.Command {
	var f stopFlags
	cmd := p.verb("restart", "Stop containers and start them again", "berth restart web", func(ctx context.Context, s *container.Service, ref string) error {
		return stopOne(ctx, s.Restart, ref, &f)
	})
	f.flags(cmd)
	return cmd
}

func (p *program) pause() *cobra.Command {
	return p.verb("pause", "Stop all processes of containers where they are", "berth pause web", func(ctx context.Context, s *container.Service, ref string) error {
		return s.Pause(ctx, ref)
	})
}

func (p *program) unpause() *cobra.Command {
	return p.verb("unpause", "Let paused containers go on", "berth unpause web", func(ctx context.Context, s *container.Service, ref string) error {
		return s.Unpause(ctx, ref)
	})
}

func (p *program) rm() *cobra.Command {
	var f removeFlags
	cmd := p.verb("rm", "Remove containers", "berth rm -f web", func(ctx context.Context, s *container.Service, ref string) error {
		return s.Remove(ctx, ref, f.force)
	})
	f.flags(cmd)
	return cmd
}

func (p *program) wait() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER…", Short: "Wait until containers have ended, and print their exit statuses", Args: cobra.MinimumNArgs(1),
		Example: "  berth wait job", ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.containers(cmd.Context(), func(s *container.Service) error {
				return interrupted(cmd.Context(), each(args, func(ref string) error {
					code, err := s.Wait(cmd.Context(), ref)
					if err == nil {
						p.say(strconv.Itoa(code))
					}
					return err
				}))
			})
		},
	}
}

func (p *program) ps() *cobra.Command {
	var f psFlags
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: cobra.NoArgs,
		Example: "  berth ps -a\n  berth ps --format '{{.Names}}: {{.Status}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.wired(cmd.Context(), func(e *engine.Engine, s *container.Service) error {
				all, err := details(cmd.Context(), e, s, nil)
				if err != nil {
					return err
				}
				rows, err := f.rows(all, time.Now())
				if err != nil {
					return usage(err)
				}
				return show(f.list, p.out, containerLayout, rows)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// details returns the containers that are named, or all, with how they are
// connected.
func details(ctx context.Context, e *engine.Engine, s *container.Service, refs []string) (out []containerDetail, err error) {
	var all []container.Detail
	if refs == nil {
		all, err = s.List(ctx)
	} else {
		err = each(refs, func(ref string) error {
			d, err := s.Inspect(ctx, ref)
			if err == nil {
				all = append(all, d)
			}
			return err
		})
	}
	sandboxes, serr := e.RecordedSandboxes(ctx)
	of := map[string][]engine.EndpointDetail{}
	for _, sb := range sandboxes {
		of[sb.Labels[ofContainer]] = sb.Endpoints
	}
	for _, d := range all {
		out = append(out, containerDetail{Container: d.Container, Run: d.Run, State: string(d.State), Endpoints: of[d.ID], LogPath: s.LogPath(d.ID)})
	}
	return out, errors.Join(err, serr)
}

func (p *program) inspectContainers() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect CONTAINER…", Short: "Show containers in detail", Args: cobra.MinimumNArgs(1),
		Example:           "  berth inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web",
		ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.wired(cmd.Context(), func(e *engine.Engine, s *container.Service) error {
				all, err := details(cmd.Context(), e, s, args)
				networks, nerr := networksByID(cmd.Context(), e)
				out := []wholeJSON{}
				for _, d := range all {
					out = append(out, containerAsJSON(d, networks))
				}
				return errors.Join(err, nerr, inspect(p.out, format, out))
			})
		},
	}
	detailFlag(cmd, &format)
	return cmd
}

func (p *program) logs() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use: "logs CONTAINER", Short: "Show what a container has written", Args: cobra.ExactArgs(1),
		Example: "  berth logs -f --since 10m web\n  berth logs -n 20 -t web", ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options(time.Now())
			if err != nil {
				return usage(err)
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				return interrupted(cmd.Context(), s.Logs(cmd.Context(), args[0], o, p.out, p.err))
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// interrupted is how a command that only looked on ends when its user has seen
// enough: with the status of a shell's command, and nothing to say.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exit{status: 128 + int(syscall.SIGINT)}
	}
	return err
}

// options are what the reader of logs takes.
func (l *logsFlags) options(now time.Time) (o oci.LogOptions, err error) {
	o.Follow, o.Timestamps = l.follow, l.times
	if o.Tail, err = l.lines(); err != nil {
		return o, err
	}
	if o.Since, err = parseTime("since", l.since, now); err != nil {
		return o, err
	}
	o.Until, err = parseTime("until", l.until, now)
	return o, err
}

func (p *program) execContainer() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec CONTAINER COMMAND [ARGUMENT…]", Short: "Run a command in a container that runs",
		Example: "  berth exec -it web sh\n  berth exec -e DEBUG=1 -u 1000 web id", ValidArgsFunction: p.completeContainers,
		Args: func(cmd *cobra.Command, args []string) error { return failExec(cobra.MinimumNArgs(2)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := f.environment()
			if err != nil {
				return failExec(err)
			}
			o := container.ExecOptions{
				Command: args[1:], Env: env, Dir: f.dir, User: f.user, Terminal: f.tty, Detach: f.detach, Privileged: f.privileged,
				Stdout: os.Stdout, Stderr: os.Stderr,
			}
			if f.interactive {
				o.Stdin = os.Stdin
			}
			if err := needTerminal(f.interactive && !f.detach, f.tty); err != nil {
				return err
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				code, err := s.Exec(cmd.Context(), args[0], o)
				if err != nil {
					return failExec(err)
				}
				return failed(code)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// failed reports a container's exit status as this program's.
func failed(code int) error {
	if code == 0 {
		return nil
	}
	return &exit{status: code}
}

// completeContainers completes the names of containers.
func (p *program) completeContainers(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	err := p.containers(cmd.Context(), func(s *container.Service) error {
		all, err := s.List(cmd.Context())
		for _, d := range all {
			if !slices.Contains(args, d.Name) {
				names = append(names, d.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
