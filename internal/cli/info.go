package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth/engine"
	"berth/internal/container"
)

func (p *program) info() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info", Short: "What this host is, and what its kernel has", Args: cobra.NoArgs,
		Example: "  berth info --format json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				h, err := e.Info(cmd.Context())
				if err != nil {
					return err
				}
				s, err := p.service(wires{e})
				if err != nil {
					return err
				}
				defer s.Close()
				c, err := s.Host(cmd.Context())
				if err != nil {
					return err
				}
				if format != "" {
					return inspect(p.out, format, []hostDetail{{h, c}})
				}
				return p.host(hostDetail{h, c})
			})
		},
	}
	detailFlag(cmd, &format)
	return cmd
}

// A hostDetail is this host, as networks and as containers see it.
type hostDetail struct {
	engine.HostInfo
	container.Host
}

// host prints what Info tells.
func (p *program) host(h hostDetail) error {
	tw := tabwriter.NewWriter(p.out, 10, 1, 3, ' ', 0)
	fmt.Fprintf(tw, "Kernel:\t%s\nRoot:\t%s\nRun:\t%s\n", h.Kernel, h.Root, h.Run)
	fmt.Fprintf(tw, "Networks:\t%d\nSandboxes:\t%d\nEndpoints:\t%d\nPorts:\t%d\n", h.Networks, h.Sandboxes, h.Endpoints, h.Ports)
	for i, x := range h.Pools {
		head := ""
		if i == 0 {
			head = "Pools:"
		}
		fmt.Fprintf(tw, "%s\t%s cut into /%d\n", head, x.Base, x.Size)
	}
	fmt.Fprintf(tw, "Containers:\t%d, %d of them running\nRuntime:\t%s\nMonitor:\t%s\n", h.Containers, h.Running, h.Runtime, h.Monitor)
	fmt.Fprintf(tw, "Cgroups:\t%s\n", strings.TrimSpace(h.CgroupVersion+" "+strings.Join(h.Controllers, " ")))
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(tw, "\nFEATURE\tHAVE\tWITHOUT IT")
	for _, x := range h.Features {
		have := "yes"
		if !x.Have {
			have = "no"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", x.Name, have, x.Costs)
	}
	for _, x := range h.Missing {
		fmt.Fprintf(tw, "%s\tno\t%s\n", x.Name, x.Costs)
	}
	return tw.Flush()
}
