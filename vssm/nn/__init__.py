"""What families share: state-space parameters and their initialisation, stems, downsampling, MLPs."""
