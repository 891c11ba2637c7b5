package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth/engine"
)

// A completer offers words; it is silent when the store cannot be read.
type completer = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

func (p *program) offer(cmd *cobra.Command, words func(*engine.Engine) []string) ([]string, cobra.ShellCompDirective) {
	var out []string
	_ = p.with(cmd.Context(), func(e *engine.Engine) error {
		out = words(e)
		return nil
	})
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (p *program) completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.offer(cmd, func(e *engine.Engine) (out []string) {
		all, _ := e.Networks(cmd.Context())
		for _, n := range all {
			out = append(out, n.Name)
		}
		return out
	})
}

func (p *program) completeSandboxes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "rm" && cmd.Name() != "inspect" && cmd.Name() != "disconnect" && cmd.Name() != "connect" {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return p.offer(cmd, func(e *engine.Engine) (out []string) {
		known := map[string]bool{}
		all, _ := e.Sandboxes(cmd.Context())
		for _, s := range all {
			known[s.Name] = true
			out = append(out, s.Name)
		}
		pinned, _ := os.ReadDir("/run/netns")
		for _, n := range pinned {
			if !known[n.Name()] {
				out = append(out, n.Name())
			}
		}
		return out
	})
}

func (p *program) completeConnect(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return p.completeNetworks(cmd, args, to)
	}
	return p.completeSandboxes(cmd, args, to)
}

func (p *program) completePublished(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return p.completeSandboxes(cmd, args, to)
	}
	return p.offer(cmd, func(e *engine.Engine) (out []string) {
		ports, _ := e.Ports(cmd.Context(), args[0])
		for _, x := range ports {
			out = append(out, fmt.Sprintf("%d/%s", x.HostPort, x.Protocol))
		}
		return out
	})
}

var _ completer = (*program)(nil).completeNetworks
