package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth"
	"berth/internal/container"
	"berth/internal/oci"
)

// statsEvery is how long the use of processors is measured, and how often
// "stats" tells.
const statsEvery = time.Second

func (p *program) stats() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use: "stats [CONTAINER…]", Short: "Show what containers use, each second", ValidArgsFunction: p.completeContainers,
		Long: `Show what containers use of processors, memory, networks, disks and processes:
those that are named, else all that run, until it is interrupted. "--" is what
this kernel does not count, as the traffic of a container on the host's network.

100 % of CPU is one processor. Memory is without the page cache that the kernel
takes back when it needs it.`,
		Example: "  berth stats --no-stream\n  berth stats --format '{{.Name}} {{.CPUPerc}}' web",
		RunE: func(cmd *cobra.Command, args []string) error {
			// A template that does not fit is told of before anything is measured.
			if err := show(f.list, io.Discard, statsLayout, []statsRow{{}}); err != nil {
				return err
			}
			return p.containers(cmd.Context(), func(s *container.Service) error {
				w := watcher{s: s, refs: args, all: f.all, noTrunc: f.noTrunc}
				if f.once {
					rows, err := w.next(cmd.Context())
					return errors.Join(err, show(f.list, p.out, statsLayout, rows))
				}
				return p.watch(cmd.Context(), &w, f.list)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

// watch shows rows until it is interrupted or nothing that was named is left.
func (p *program) watch(ctx context.Context, w *watcher, l list) error {
	// A table on a terminal is drawn over the one before, without a flicker: the
	// cursor goes home, and what each line and the screen had more is erased.
	over := oci.IsTerminal(os.Stdout) && (l.format == "" || strings.HasPrefix(l.format, "table"))
	if over {
		fmt.Fprint(p.out, "\x1b[2J")
	}
	for {
		rows, err := w.next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := show(l, &b, statsLayout, rows); err != nil {
			return err
		}
		text := b.String()
		if over {
			text = "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
		}
		if _, err := io.WriteString(p.out, text); err != nil {
			return err
		}
		if len(rows) == 0 && len(w.refs) > 0 {
			return nil
		}
	}
}

// A watcher looks what containers use again and again.
type watcher struct {
	s            *container.Service
	refs         []string // nil: all
	all, noTrunc bool
	before       map[string]container.Usage // by id, of the look before
}

// next waits for the time that is measured and returns what was used in it.
func (w *watcher) next(ctx context.Context) ([]statsRow, error) {
	if w.before == nil {
		if _, err := w.look(ctx); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(statsEvery):
	}
	return w.look(ctx)
}

func (w *watcher) look(ctx context.Context) ([]statsRow, error) {
	list, err := w.list(ctx)
	if err != nil {
		return nil, err
	}
	now := map[string]container.Usage{}
	rows := []statsRow{}
	for _, d := range list {
		u, running, err := w.s.Usage(d.Detail)
		if err != nil {
			return nil, err
		}
		if !running && len(w.refs) == 0 && !w.all {
			continue
		}
		before, seen := w.before[d.ID]
		if !seen {
			before = u
		}
		now[d.ID] = u
		rows = append(rows, statsAsRow(d, u, before, running, w.noTrunc))
	}
	w.before = now
	return rows, nil
}

// A watched container is one with the word that it was named by.
type watched struct {
	container.Detail
	word string
}

// list returns the containers that are watched, the newest first, or in the
// order in which they are named. One that is removed meanwhile is left out.
func (w *watcher) list(ctx context.Context) (out []watched, err error) {
	if len(w.refs) > 0 {
		for _, ref := range w.refs {
			d, err := w.s.Inspect(ctx, ref)
			if w.before != nil && errors.Is(err, berth.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, watched{d, ref})
		}
		return out, nil
	}
	all, err := w.s.List(ctx)
	slices.SortStableFunc(all, func(a, b container.Detail) int { return b.Created.Compare(a.Created) })
	for _, d := range all {
		out = append(out, watched{d, short(d.ID, w.noTrunc)})
	}
	return out, err
}

// A statsRow is a container as "docker stats" lists it, in the order of its
// JSON.
type statsRow struct{ BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string }

var statsLayout = layout{
	headings: header{
		"BlockIO": "BLOCK I/O", "CPUPerc": "CPU %", "Container": "CONTAINER", "ID": "CONTAINER ID", "MemPerc": "MEM %",
		"MemUsage": "MEM USAGE / LIMIT", "Name": "NAME", "NetIO": "NET I/O", "PIDs": "PIDS",
	},
	shown: []string{"ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"},
}

func statsAsRow(d watched, u, before container.Usage, running, whole bool) statsRow {
	r := statsRow{
		Container: d.word, ID: short(d.ID, whole), Name: d.Name,
		CPUPerc: "--", MemPerc: "--", MemUsage: "-- / --", NetIO: "-- / --", BlockIO: "-- / --", PIDs: "--",
	}
	if !running {
		r.CPUPerc, r.MemPerc, r.MemUsage, r.NetIO, r.BlockIO, r.PIDs = "0.00%", "0.00%", "0B / 0B", "0B / 0B", "0B / 0B", "0"
		return r
	}
	if u.CPU != nil && before.CPU != nil {
		r.CPUPerc = fmt.Sprintf("%.2f%%", u.CPU.Percent(*before.CPU))
	}
	if m := u.Memory; m != nil {
		r.MemUsage = binary(m.Usage) + " / " + binary(m.Limit)
		r.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(m.Usage)/float64(max(m.Limit, 1)))
	}
	if u.Net != nil {
		r.NetIO = decimal(u.Net.Received) + " / " + decimal(u.Net.Sent)
	}
	if u.IO != nil {
		r.BlockIO = decimal(u.IO.Read) + " / " + decimal(u.IO.Write)
	}
	if u.Pids != nil {
		r.PIDs = strconv.FormatInt(u.Pids.Current, 10)
	}
	return r
}

// decimal is a number of bytes in powers of 1000 and three digits, as Docker
// shows traffic; binary one in powers of 1024 and four, as it shows memory.
func decimal(n int64) string {
	return sized(float64(n), 1000, 3, "B", "kB", "MB", "GB", "TB", "PB", "EB")
}

func binary(n int64) string {
	return sized(float64(n), 1024, 4, "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
}

func sized(n, base float64, digits int, units ...string) string {
	for n >= base && len(units) > 1 {
		n, units = n/base, units[1:]
	}
	s := strconv.FormatFloat(n, 'g', digits, 64)
	if strings.Contains(s, "e") { // rounded up to one digit more
		s = strconv.FormatFloat(n, 'f', 0, 64)
	}
	return s + units[0]
}
